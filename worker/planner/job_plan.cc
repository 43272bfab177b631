#include "worker/planner/job_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "proto/jobfile/enum_names.h"
#include "proto/jobfile/job_file.h"
#include "worker/planner/plan_text.h"
#include "worker/planner/policy_search.h"

namespace longspan::planner {
namespace {

constexpr int64_t kContextMin = 2, kContextMax = int64_t{1} << 24;
constexpr double kWithinFastest = 1.005;

bool AnyFits(const PlannedJob& job, const ModelMemory& model) {
  return IsCountable(job.config, job.rows()) && PolicySearch(job, model).AnyFits(job.limits);
}

// The largest value of [low, high] that fits, where smaller ones fit too; 0 when not even low does.
template <class FitsAt>
int64_t Largest(int64_t low, int64_t high, const FitsAt& fits_at) {
  if (!fits_at(low)) return 0;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (fits_at(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

bool IsLimited(const MemoryLimits& limits) { return limits.device || limits.whole; }

// That the ranks of a sequence can share, too.
int64_t LongestContext(const PlannedJob& job, const ModelMemory& model, int64_t at_most) {
  PlannedJob shorter = job;
  int64_t longest = Largest(kContextMin, at_most, [&](int64_t tokens) {
    shorter.spec.context_length = tokens;
    return AnyFits(shorter, model);
  });
  const auto divides = [&] {
    shorter.spec.context_length = longest;
    return jobfile::ContextDivides(shorter.spec);
  };
  while (longest >= kContextMin && !divides()) --longest;
  return longest >= kContextMin ? longest : 0;
}

JobPlan PlanOf(const PlannedJob& job, const StepShape& shape, const Candidate& candidate) {
  JobPlan plan;
  plan.policy = candidate.policy;
  plan.memory = candidate.memory;
  plan.time = TimeOfStep(job, WorkOfPass(job, shape, candidate.policy), candidate.memory.host_traffic,
                         candidate.memory.model.trained_values);
  plan.model_flops = ModelFlopsOfStep(job);
  return plan;
}

std::optional<jobfile::MethodKind> QuantizedMethod(jobfile::MethodKind kind) {
  if (kind == jobfile::MethodKind::kLora) return jobfile::MethodKind::kQlora;
  if (kind == jobfile::MethodKind::kLongLora) return jobfile::MethodKind::kQlongLora;
  return std::nullopt;
}

// Without another change of the job.
bool CanShareWeights(const jobfile::JobSpec& spec) {
  if (spec.resources.shard_weights || spec.resources.slots < 2) return false;
  jobfile::JobSpec shared = spec;
  shared.resources.shard_weights = true;
  const std::vector<jobfile::Mistake> mistakes = jobfile::Validate(shared);
  return std::none_of(mistakes.begin(), mistakes.end(),
                      [](const jobfile::Mistake& mistake) { return mistake.path == "resources.shard_weights"; });
}

// Changes of one kind each, with which the job would fit.
std::vector<std::string> WouldFit(const PlannedJob& job, const ModelMemory& model, const JobPlan& leanest) {
  std::vector<std::string> changes;
  PlannedJob open = job;
  open.spec.memory = {};
  if (AnyFits(open, model)) changes.push_back("the same with what `memory` fixes left out");
  if (const int64_t sequences = job.micro_batch(); sequences > 1) {
    PlannedJob smaller = job;
    const int64_t fitting = Largest(1, sequences - 1, [&](int64_t count) {
      smaller.spec.training.micro_batch = count;
      return AnyFits(smaller, model);
    });
    if (fitting > 0) changes.push_back(fmt::format("training.micro_batch: {}", fitting));
  }
  if (const auto method = QuantizedMethod(job.spec.method.kind)) {
    PlannedJob quantized = job;
    quantized.spec.method.kind = *method;
    quantized.adapter.quantized = true;
    if (AnyFits(quantized, ModelMemoryOf(quantized))) {
      changes.push_back(fmt::format("method.kind: {}", jobfile::NameOf(*method)));
    }
  }
  if (CanShareWeights(job.spec)) {
    PlannedJob shared = job;
    shared.spec.resources.shard_weights = true;
    if (AnyFits(shared, ModelMemoryOf(shared))) changes.push_back("resources.shard_weights: true");
  }
  if (job.limits.host && job.limits.device) {
    PlannedJob with_host = job;
    with_host.limits.host.reset();
    std::optional<int64_t> least;
    PolicySearch(with_host, model).ForEachThatFits(with_host.limits, [&](const Candidate& candidate) {
      const int64_t bytes = candidate.memory.host_activations();
      least = std::min(least.value_or(bytes), bytes);
      return true;
    });
    if (least) changes.push_back(fmt::format("memory.host_bytes: {} ({})", *least, BytesText(*least)));
  }
  if (const int64_t longest = LongestContext(job, model, job.spec.context_length - 1); longest > 0) {
    changes.push_back(fmt::format("context_length: {}", longest));
  }
  if (job.limits.whole || job.limits.device) {
    const bool whole = !job.limits.device || (job.limits.whole && leanest.memory.whole_bytes() > *job.limits.whole);
    const int64_t bytes = whole ? leanest.memory.whole_bytes() : leanest.memory.device_bytes();
    changes.push_back(fmt::format("{} of memory for a rank", BytesText(bytes)));
  }
  return changes;
}

// Where nothing fits: what is nearest to it.
Candidate Leanest(PolicySearch* search, const MemoryLimits& limits) {
  const auto need = [&](const RankMemory& memory) {
    return std::pair(BytesOver(memory, limits), memory.whole_bytes());
  };
  std::optional<Candidate> leanest;
  search->ForEach(limits, [&](const Candidate& candidate) {
    if (!leanest || need(candidate.memory) < need(leanest->memory)) leanest = candidate;
    return true;
  });
  return *leanest;
}

}  // namespace

JobPlan PlanWith(const PlannedJob& job, const MemoryPolicy& policy) {
  return PlanOf(job, job.Shape(), {policy, MemoryOfRank(job, policy)});
}

PlanResult ChoosePolicy(const PlannedJob& job) {
  if (!IsCountable(job.config, job.rows()))
    throw std::overflow_error("the job is too large for its bytes to be counted");
  const StepShape shape = job.Shape();
  const ModelMemory model = ModelMemoryOf(job);
  PolicySearch search(job, model);
  PlanResult result;
  std::vector<JobPlan> fitting;
  search.ForEachThatFits(job.limits, [&](const Candidate& candidate) {
    fitting.push_back(PlanOf(job, shape, candidate));
    return true;
  });
  result.fits = !fitting.empty();
  if (!result.fits) {
    result.plan = PlanOf(job, shape, Leanest(&search, job.limits));
    result.would_fit = WouldFit(job, model, result.plan);
    return result;
  }
  double fastest = std::numeric_limits<double>::infinity();
  for (const JobPlan& plan : fitting) fastest = std::min(fastest, plan.time.seconds);
  // Of those as good as the fastest the leanest, by tiles of heads only where no other is among them.
  const auto order = [](const JobPlan& plan) {
    return std::pair(plan.policy.tile_heads > 0, plan.memory.whole_bytes());
  };
  const JobPlan* best = nullptr;
  for (const JobPlan& plan : fitting) {
    if (plan.time.seconds > fastest * kWithinFastest) continue;
    if (best == nullptr || order(plan) < order(*best)) best = &plan;
  }
  result.plan = *best;
  return result;
}

namespace {

// The least memory of a slot of which this many bytes are usable.
int64_t SlotMemoryFor(int64_t bytes, const DeviceProfile& device) {
  const auto usable = [&](int64_t memory) {
    const MemoryLimits limits = LimitsOfSlot(memory, device);
    return device.is_host ? *limits.whole : *limits.device;
  };
  int64_t memory = bytes + device.process_bytes;
  memory += memory / 19;
  while (usable(memory) >= bytes && memory > 0) --memory;
  while (usable(memory) < bytes) ++memory;
  return memory;
}

}  // namespace

std::optional<int64_t> LeastSlotMemory(const PlannedJob& job) {
  if (!IsCountable(job.config, job.rows()))
    throw std::overflow_error("the job is too large for its bytes to be counted");
  if (!job.device.is_host && job.limits.device) {
    const PlanResult result = ChoosePolicy(job);
    if (!result.fits) return std::nullopt;
    return SlotMemoryFor(result.plan.memory.device_bytes(), job.device);
  }
  PolicySearch search(job, ModelMemoryOf(job));
  const std::optional<int64_t> least =
      job.device.is_host ? search.Least(job.limits, [](const RankMemory& memory) { return memory.whole_bytes(); })
                         : search.LeastDeviceBytes(job.limits);
  if (!least) return std::nullopt;
  return SlotMemoryFor(*least, job.device);
}

std::optional<int64_t> LongestContext(const PlannedJob& job) {
  if (!IsLimited(job.limits)) return std::nullopt;
  return LongestContext(job, ModelMemoryOf(job), kContextMax);
}

}  // namespace longspan::planner
