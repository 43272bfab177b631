// The training step alone, on given or random tokens, for benchmarks: what tests/bench drives beside other trainers.
//
// Says hello with one line of JSON (the plan and its prediction), then runs one optimizer step for every line it reads,
// and answers each with a line of JSON: seconds of the wall and of the processor, by phase, and memory. Ends with its
// input.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/parallel/communicator.h"

namespace longspan::trainer {

struct MeasureOptions {
  jobfile::JobSpec spec;
  int64_t threads = 1;
  std::optional<int64_t> slot_memory_bytes;
  at::Device device = at::kCPU;
  // Safetensors with input_ids (rows, context_length) I64: sequence i of the job is row i modulo rows. Empty: random.
  std::string tokens_path;
};

// All ranks of `ranks` call this; each reads lines of its own. UserError and the like as CausalLm::Load, and where the
// tokens do not suit the job.
void MeasureSteps(const MeasureOptions& options, Communicator& ranks, std::istream& in, std::ostream& out);

}  // namespace longspan::trainer
