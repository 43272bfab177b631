// Whether the trainer program can train on the GPUs that this worker offers: asked once, before anything is offered, so
// that a trainer without CUDA, or a runtime that does not see what the driver lists, is the operator's error at the
// start and not that of every job.
//
// The question is `longspan-trainer version --json`, in the environment that ranks get, with all the offered GPUs
// visible. Its answer is a line {"version": "0.1.0", "cuda": true, "gpus": [{"name": "NVIDIA H200",
// "compute_capability": "9.0", "usable": true}, …]} among whatever else it prints; fields that are not known here are
// ignored.
#pragma once

#include <absl/status/status.h>
#include <absl/time/time.h>

#include <string>
#include <string_view>
#include <vector>

namespace longspan::worker {

struct TrainerQuestion {
  std::string trainer;                         // path of the program
  std::vector<std::string> gpus;               // UUIDs of those that are offered
  std::vector<std::string> environment;        // "NAME=value", without CUDA_VISIBLE_DEVICES
  absl::Duration deadline = absl::Minutes(1);  // a driver that nobody keeps loaded takes its time
};

// InvalidArgument when the answer is no; the message says what would be right. Starts the trainer, from the calling
// thread, and waits for its end.
absl::Status AskTrainer(const TrainerQuestion& question);

// The same of what it printed. Pure.
absl::Status JudgeTrainerAnswer(const TrainerQuestion& question, std::string_view printed);

}  // namespace longspan::worker
