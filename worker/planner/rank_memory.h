// Bytes that one rank of a job holds at its fullest, by kind, under a memory policy.
//
// Pure. Arena and kept values are the engine's own sizes (step_buffers.h, kept_values.h); the rest is counted from the
// model's tensors as the trainer loads them, gives them gradients, and reduces and optimizes these.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "worker/planner/kept_values.h"
#include "worker/planner/memory_policy.h"
#include "worker/planner/planned_job.h"

namespace longspan::planner {

// What does not depend on lengths or policy.
struct ModelMemory {
  // In the compute dtype; 4-bit linear layers; A and B with what is derived from them. Where ranks share the linear
  // layers: the rank's part, and the gathered layers.
  int64_t weights = 0;
  int64_t gradients = 0;    // fp32, of all that trains
  int64_t optimizer = 0;    // fp32 moments, and master copies where the compute dtype is another
  int64_t collectives = 0;  // flat buckets of gradients that are added up over the ranks together
  int64_t checkpoint = 0;   // host: the copy that is written while training goes on
  int64_t trained_values = 0;
};
ModelMemory ModelMemoryOf(const trainer::ModelConfig& config, const trainer::AdapterPlan& adapter,
                          jobfile::TrainingDtype dtype);  // with whole weights
ModelMemory ModelMemoryOf(const PlannedJob& job);

struct RankMemory {
  ModelMemory model;
  std::array<int64_t, kKeptPartCount> kept{};       // on the device
  std::array<int64_t, kKeptPartCount> kept_host{};  // in host memory
  int64_t workspace = 0;                            // the arena
  int64_t attention = 0;     // what attention operators of a GPU take for a moment (dense_attention_memory.h)
  int64_t batch = 0;         // token ids, labels and targets of a pass, angles of positions
  int64_t tokens = 0;        // host: token ids and labels of a step
  int64_t host_traffic = 0;  // of a pass, out and back

  int64_t activations() const;
  int64_t host_activations() const;
  int64_t device_bytes() const;  // at the fullest moment of a step
  // With what a rank holds in host memory, at worst: while a checkpoint is written.
  int64_t whole_bytes() const { return device_bytes() + host_activations() + tokens + model.checkpoint; }
};
RankMemory MemoryOfRank(const PlannedJob& job, const MemoryPolicy& policy);

// The parts of MemoryOfRank, for searches: what depends on the lengths only, and the arena alone.
RankMemory MemoryWithoutPolicy(const PlannedJob& job, const ModelMemory& model);
int64_t WorkspaceBytes(const StepShape& shape, const MemoryPolicy& policy);
int64_t LeastWorkspaceBytes(const StepShape& shape, const MemoryPolicy& policy);  // no arena is smaller, without one
void SetKept(const StepShape& shape, const MemoryPolicy& policy, RankMemory* memory);

// "query_key_value", for messages and keys.
std::string_view NameOf(KeptPart part);

}  // namespace longspan::planner
