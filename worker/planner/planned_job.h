// What a plan is made of: the job, the model's config.json, what trains, and where it is to run.
//
// Pure values.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "proto/jobfile/job_spec.h"
#include "worker/model_config/adapter_plan.h"
#include "worker/model_config/model_config.h"
#include "worker/planner/device_profile.h"
#include "worker/planner/step_buffers.h"

namespace longspan::planner {

// Bytes that a rank may use; absent: as many as it likes.
struct MemoryLimits {
  std::optional<int64_t> device;    // RankMemory::device_bytes
  std::optional<int64_t> host = 0;  // kept values in host memory
  std::optional<int64_t> whole;     // both, and what else a rank holds in host memory, where they are one (a CPU slot)
};

struct PlannedJob {
  jobfile::JobSpec spec;  // of kind extend; training.dtype is set
  trainer::ModelConfig config;
  trainer::AdapterPlan adapter;
  DeviceProfile device;
  MemoryLimits limits;
  // Of the attention kernel for one pass; absent: it needs none.
  std::function<int64_t(const StepShape&)> attention_scratch_bytes;

  int64_t micro_batch() const;        // sequences of a pass
  int64_t rows() const;               // tokens of a pass: of sequences that ranks share, this rank's
  int64_t sequences_of_rank() const;  // of a step, whole or shared, of the rank that has most
  int64_t passes_of_rank() const;     // forward and backward passes of a step, likewise
  StepShape Shape() const;            // of a pass
};

// Fills in what the job leaves to the device: its dtype, and of the limits those that the job file has.
PlannedJob PlannedJobOf(const jobfile::JobSpec& spec, const trainer::ModelConfig& config,
                        const trainer::AdapterPlan& adapter, const DeviceProfile& device,
                        const MemoryLimits& limits = {});

// Whether all bytes and FLOPs of the model and of a pass over `rows` tokens fit into the numbers they are counted in:
// no for a config.json that makes no sense.
bool IsCountable(const trainer::ModelConfig& config, int64_t rows);

// What a slot of this much memory has for a rank: less the process itself, and a twentieth, by which a prediction may
// be wrong.
MemoryLimits LimitsOfSlot(int64_t slot_memory_bytes, const DeviceProfile& device);

}  // namespace longspan::planner
