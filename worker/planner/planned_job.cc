#include "worker/planner/planned_job.h"

#include <algorithm>

#include "worker/planner/job_shape.h"

namespace longspan::planner {

int64_t PlannedJob::micro_batch() const {
  return std::min(std::max<int64_t>(1, spec.training.micro_batch.value_or(1)), sequences_of_rank());
}

int64_t PlannedJob::rows() const { return micro_batch() * jobfile::TokensPerRank(spec); }

int64_t PlannedJob::sequences_of_rank() const {
  const int64_t groups = jobfile::DataGroups(spec);
  return std::max<int64_t>(1, (spec.training.global_batch + groups - 1) / groups);
}

int64_t PlannedJob::passes_of_rank() const { return (sequences_of_rank() + micro_batch() - 1) / micro_batch(); }

StepShape PlannedJob::Shape() const {
  StepShape shape = StepShapeOf(spec, config, adapter, rows());
  shape.on_gpu = !device.is_host;
  if (jobfile::RanksPerSequence(spec) > 1) {
    if (spec.attention.kind == jobfile::AttentionKind::kS2) {
      shape.halo_rows = micro_batch() * (jobfile::ResolvedGroupSize(spec) / 2);
    }
    if (spec.attention.kind == jobfile::AttentionKind::kFull) shape.ring_rows = rows();
  }
  if (attention_scratch_bytes) shape.attention_scratch_bytes = attention_scratch_bytes(shape);
  return shape;
}

PlannedJob PlannedJobOf(const jobfile::JobSpec& spec, const trainer::ModelConfig& config,
                        const trainer::AdapterPlan& adapter, const DeviceProfile& device, const MemoryLimits& limits) {
  PlannedJob job{spec, config, adapter, device, limits, nullptr};
  if (!job.spec.training.dtype) {
    job.spec.training.dtype = spec.training.fp8 ? jobfile::TrainingDtype::kBf16 : device.dtype;
  }
  if (spec.memory.device_bytes) job.limits.device = spec.memory.device_bytes;
  if (spec.memory.host_bytes) job.limits.host = spec.memory.host_bytes;
  return job;
}

bool IsCountable(const trainer::ModelConfig& config, int64_t rows) {
  constexpr double kBytesMax = 1e17;  // room for a few dozen kinds below 2^63
  const auto real = [](int64_t value) { return static_cast<double>(value); };
  const double layers = real(config.num_hidden_layers), hidden = real(config.hidden_size);
  const double heads = real(config.num_attention_heads + 2 * config.num_key_value_heads) * real(config.head_dim);
  const double inner = 2 * real(config.intermediate_size);
  const double weights = layers * hidden * (2 * heads + 2 * inner) + 2 * hidden * real(config.vocab_size);
  const double activations = layers * real(rows) * (2 * hidden + 2 * heads + inner);
  return 16 * weights <= kBytesMax && 8 * activations <= kBytesMax;
}

MemoryLimits LimitsOfSlot(int64_t slot_memory_bytes, const DeviceProfile& device) {
  const int64_t usable = std::max<int64_t>(0, slot_memory_bytes - slot_memory_bytes / 20 - device.process_bytes);
  MemoryLimits limits;
  (device.is_host ? limits.whole : limits.device) = usable;
  return limits;
}

}  // namespace longspan::planner
