#include "worker/trainer/memory_plan.h"

#include <fmt/format.h>

#include <stdexcept>

#include "worker/model_config/model_config.h"
#include "worker/model_config/tensor_names.h"
#include "worker/planner/device_profile.h"
#include "worker/planner/plan_text.h"
#include "worker/trainer/attention/flash_cpu.h"
#include "worker/trainer/device.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {

planner::PlannedJob PlannedJobFor(const MemoryPlanOptions& options) {
  jobfile::JobSpec spec = SpecOn(options.device, options.spec);
  spec.resources.slots = options.world_size.value_or(spec.resources.slots);
  const ModelConfig config = WithJobRope(ReadModelConfig(spec.model.path), spec);
  const AdapterPlan adapter = ResolveAdapterPlan(spec, AdaptableModelOf(config));
  const planner::DeviceProfile device = ProfileOf(options.device, options.threads);
  const int64_t slot = options.slot_memory_bytes ? *options.slot_memory_bytes : MemoryBytesOf(options.device);
  planner::PlannedJob job = planner::PlannedJobOf(spec, config, adapter, device, planner::LimitsOfSlot(slot, device));
  if (options.device.is_cpu())
    job.attention_scratch_bytes = [threads = options.threads](const planner::StepShape& shape) {
      return 4 * FlashWorkspaceSize(shape.head_dim, threads);
    };
  if (!planner::IsCountable(config, job.rows())) {
    throw UserError(fmt::format("cannot use {}/config.json: a model of its sizes has more bytes than can be counted",
                                spec.model.path));
  }
  return job;
}

planner::JobPlan PlanMemory(const MemoryPlanOptions& options) {
  const planner::PlannedJob job = PlannedJobFor(options);
  planner::PlanResult result = planner::ChoosePolicy(job);
  if (!result.fits) throw ResourceError(planner::SummaryText(job, result, ""));
  return std::move(result.plan);
}

}  // namespace longspan::trainer
