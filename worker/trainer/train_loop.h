// The steps of the train phase: data, forward and backward, all-reduce, update, checkpoint, progress.
//
//   batch(seed, step) ─► data group's rows ─► micro-batches ─► gradients ─► sum over ranks + control word ─► skip |
//   clip, update
//                                                                                      │
//                                     all ranks: stop? checkpoint? evaluate? ◄─────────┘
//
// Every decision is taken from the reduced control word and from numbers that are equal on all ranks, never from a
// local opinion. The data position is the step; a skipped step (non-finite, nothing scored) advances it, but neither
// optimizer nor schedule. Saving and resuming is bit-identical for the same ranks, threads and build. Not thread-safe.
#pragma once

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/checkpoint/checkpoint.h"
#include "worker/trainer/checkpoint/checkpoint_writer.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/evaluate/perplexity.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/parallel/communicator.h"
#include "worker/trainer/parallel/gradient_reducer.h"
#include "worker/trainer/parallel/sequence_ranks.h"
#include "worker/trainer/session.h"

namespace longspan::trainer {

// So many steps in a row without a usable loss and gradient fail the job.
inline constexpr int64_t kNonfiniteStepsInARowMax = 10;

struct TrainOptions {
  jobfile::JobSpec spec;
  std::filesystem::path work;
  std::string job;
  int64_t attempt = 1;
  int64_t threads = 1;
  at::Device device = at::kCPU;
  std::string version;
  bool under_service = false;            // then checkpoints are deleted only after the server recorded a newer one
  std::filesystem::path dump_gradients;  // empty: no
  int64_t planned_device_bytes = 0;      // the planner's prediction, reported beside what is counted
};

class TrainLoop {
 public:
  // The references outlive the loop. `sequence`: over `ranks`, as the model knows it. `resume` is where to go on, if
  // anywhere.
  TrainLoop(const TrainOptions& options, CausalLm& model, const Dataset& dataset, Communicator& ranks,
            SequenceRanks& sequence, Session& session, const std::optional<LoadedCheckpoint>& resume);

  enum class Outcome { kFinished, kStopped };
  Outcome Run();

  const TrainerState& state() const { return state_; }
  // Deletes what the server's last answers made superfluous.
  void HandleRecorded();

 private:
  struct StepTimes {
    double data = 0, forward = 0, backward = 0, allreduce = 0, optimizer = 0;
    double exchange = 0;  // of forward and backward, waited for what other ranks of the sequence send
  };
  struct StepResult {
    ControlWord word;
    double loss = 0, norm = 0, learning_rate = 0;
    int64_t tokens = 0;  // of all ranks, without padding
    bool skipped = false;
    StepTimes times;
  };
  StepResult Step();
  void RunMicroBatches(const Rows& rows, int64_t first_row, ControlWord& word, StepTimes& times);
  void Update(StepResult& result);
  void CountSkipped(const StepResult& result);
  Rows RowsOf(BatchSlice slice) const;
  void CountWork(StepResult& result);

  void SaveCheckpoint();
  void FinishCheckpoint(bool wait);
  void Announce(const WrittenCheckpoint& written);
  void DeleteOlderThan(const CheckpointName& newest);
  bool EvaluateNow();

  void Report(const StepResult& result, double seconds);
  void DumpGradients(const StepResult& result);
  void KeepProgressUpTo(int64_t step);

  const TrainOptions options_;
  CausalLm& model_;
  const Dataset& dataset_;
  Communicator& ranks_;
  SequenceRanks& sequence_;
  Session& session_;
  std::vector<at::Tensor> gradients_;
  AdamW optimizer_;
  GradientReducer reducer_;
  CheckpointWriter writer_;
  TrainerState state_;
  double seconds_before_ = 0;  // of earlier attempts
  std::chrono::steady_clock::time_point begin_;
  int64_t last_saved_step_ = -1;
  double seconds_checkpoint_ = 0;  // not yet reported
  double host_wait_before_ = 0;    // seconds that earlier steps waited for copies to and from host memory
  double gather_wait_before_ = 0;  // and for weights of other ranks
  std::ofstream progress_;
};

// The largest resident set of this process so far.
int64_t MemoryPeakBytes();

}  // namespace longspan::trainer
