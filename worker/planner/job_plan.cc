#include "worker/planner/job_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "proto/jobfile/enum_names.h"
#include "proto/jobfile/job_file.h"
#include "worker/planner/attention_temporaries.h"
#include "worker/planner/plan_text.h"

namespace longspan::planner {
namespace {

constexpr int64_t kTiles[] = {256, 512, 1024, 2048};
constexpr int64_t kLossTiles[] = {256, 512, 1024, 2048};
constexpr int64_t kContextMin = 2, kContextMax = int64_t{1} << 24;
constexpr double kWithinFastest = 1.005;
constexpr int64_t kGpuQueriesMin = 65536;  // of all heads of a tile: 512 tiles of 128 queries

// What the job leaves open, in the order of the search: most kept first.
struct OpenPolicies {
  std::vector<KeepPolicy> keep;
  std::vector<int64_t> checkpoint_every, tiles, loss_tiles, head_tiles;
  std::optional<int64_t> host_layers;
};

// Sizes from the list that differ from each other in a pass of so many rows; the smallest is always there.
std::vector<int64_t> TilesFor(const std::optional<int64_t>& fixed, const int64_t (&sizes)[4], int64_t rows) {
  if (fixed) return {*fixed};
  std::vector<int64_t> tiles;
  for (const int64_t size : sizes) {
    tiles.push_back(size);
    if (size >= rows) break;
  }
  return tiles;
}

// No smaller than a quarter on a CPU, whose attention kernels go back through a key/value head on one thread. On a GPU
// down to one head of a long sequence: its queries are tiles enough for all multiprocessors a few times over.
std::vector<int64_t> HeadTilesFor(const jobfile::JobSpec& spec, const StepShape& shape) {
  if (spec.memory.tile_heads) return {*spec.memory.tile_heads};
  std::vector<int64_t> tiles = {0};
  if (jobfile::RanksPerSequence(spec) > 1) return tiles;
  for (const int64_t parts : {2, 4}) {
    if (shape.key_value_heads >= parts) tiles.push_back((shape.key_value_heads + parts - 1) / parts);
  }
  if (shape.on_gpu) {
    const int64_t queries = std::max<int64_t>(1, shape.rows * (shape.query_heads / shape.key_value_heads));
    const int64_t fewest = (kGpuQueriesMin + queries - 1) / queries;
    if (fewest < tiles.back()) tiles.push_back(fewest);
  }
  return tiles;
}

OpenPolicies OpenPoliciesOf(const jobfile::JobSpec& spec, const StepShape& shape) {
  const jobfile::MemorySection& memory = spec.memory;
  OpenPolicies open;
  const int64_t layers = std::max<int64_t>(1, shape.num_hidden_layers);
  if (memory.keep) {
    open.keep = {*memory.keep};
  } else {
    open.keep = {KeepPolicy::kGateUp, KeepPolicy::kResidual, KeepPolicy::kQueryKeyValue, KeepPolicy::kAttentionOutput,
                 KeepPolicy::kInput};
  }
  if (memory.checkpoint_every) {
    open.checkpoint_every = {std::min(*memory.checkpoint_every, layers)};
  } else {
    for (int64_t power = 1; power < layers; power *= 2) {  // 1 2 3 4 6 8 12 16 24 ...
      open.checkpoint_every.push_back(power);
      if (power > 1 && power / 2 * 3 < layers) open.checkpoint_every.push_back(power / 2 * 3);
    }
    open.checkpoint_every.push_back(layers);
  }
  open.tiles = TilesFor(memory.tile_tokens, kTiles, shape.rows);
  open.loss_tiles = TilesFor(memory.loss_tile_tokens, kLossTiles, shape.rows);
  open.head_tiles = HeadTilesFor(spec, shape);
  open.host_layers = memory.host_layers;
  return open;
}

// Layers in host memory as few as make it fit, and at most as many as host memory has room for: more would only cost
// time.
int64_t HostLayers(const StepShape& shape, MemoryPolicy policy, const MemoryLimits& limits, RankMemory memory) {
  policy.host_layers = 0;
  const KeptPlan kept = PlanKeptValues(shape, policy);
  const int64_t entry = kept.long_lived_bytes.total();
  int64_t most = std::max<int64_t>(0, kept.long_lived - kDeviceEntriesMin);
  if (limits.host) most = std::min(most, *limits.host / std::max<int64_t>(1, entry));
  if (!limits.device) return 0;
  SetKept(shape, policy, &memory);
  const int64_t over = memory.device_bytes() - *limits.device;
  return over <= 0 ? 0 : std::min(most, (over + entry - 1) / std::max<int64_t>(1, entry));
}

// By how much a plan goes beyond the limits.
int64_t BytesOver(const RankMemory& memory, const MemoryLimits& limits) {
  int64_t over = 0;
  if (limits.device) over += std::max<int64_t>(0, memory.device_bytes() - *limits.device);
  if (limits.host) over += std::max<int64_t>(0, memory.host_activations() - *limits.host);
  if (limits.whole) over += std::max<int64_t>(0, memory.whole_bytes() - *limits.whole);
  return over;
}

struct Candidate {
  MemoryPolicy policy;
  RankMemory memory;
};

// What is kept and the sizes of tiles: the arena depends on them, and on whether segments run again.
std::vector<MemoryPolicy> TiledPolicies(const OpenPolicies& open) {
  std::vector<MemoryPolicy> policies;
  for (const KeepPolicy keep : open.keep) {
    for (const int64_t heads : open.head_tiles) {
      for (const int64_t tile : open.tiles) {
        for (const int64_t loss_tile : open.loss_tiles) policies.push_back({keep, 1, 0, tile, loss_tile, heads});
      }
    }
  }
  return policies;
}

// Calls take(candidate) for every policy that is open; ends early when it says false. Lays out each arena once.
template <class Take>
void ForEachCandidate(const PlannedJob& job, const ModelMemory& model, const Take& take) {
  const StepShape shape = job.Shape();
  const OpenPolicies open = OpenPoliciesOf(job.spec, shape);
  const RankMemory without = MemoryWithoutPolicy(job, model);
  for (const MemoryPolicy& policy : TiledPolicies(open)) {
    std::optional<int64_t> workspace[2];
    const int64_t attention = AttentionTemporaries(job, shape, policy);
    for (const int64_t every : open.checkpoint_every) {
      Candidate candidate{policy, without};
      candidate.policy.checkpoint_every = every;
      std::optional<int64_t>& bytes = workspace[every > 1 ? 1 : 0];
      if (!bytes) bytes = WorkspaceBytes(shape, candidate.policy);
      candidate.memory.workspace = *bytes;
      candidate.memory.attention = attention;
      candidate.policy.host_layers =
          open.host_layers.value_or(HostLayers(shape, candidate.policy, job.limits, candidate.memory));
      candidate.policy.host_layers = PlanKeptValues(shape, candidate.policy).host;
      SetKept(shape, candidate.policy, &candidate.memory);
      if (!take(candidate)) return;
    }
  }
}

bool AnyFits(const PlannedJob& job, const ModelMemory& model) {
  if (!IsCountable(job.config, job.rows())) return false;
  bool fits = false;
  ForEachCandidate(job, model, [&](const Candidate& candidate) {
    fits = Fits(candidate.memory, job.limits);
    return !fits;
  });
  return fits;
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
    ForEachCandidate(with_host, model, [&](const Candidate& candidate) {
      const int64_t bytes = candidate.memory.host_activations();
      if (Fits(candidate.memory, with_host.limits)) least = std::min(least.value_or(bytes), bytes);
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

}  // namespace

bool Fits(const RankMemory& memory, const MemoryLimits& limits) { return BytesOver(memory, limits) == 0; }

JobPlan PlanWith(const PlannedJob& job, const MemoryPolicy& policy) {
  return PlanOf(job, job.Shape(), {policy, MemoryOfRank(job, policy)});
}

PlanResult ChoosePolicy(const PlannedJob& job) {
  if (!IsCountable(job.config, job.rows()))
    throw std::overflow_error("the job is too large for its bytes to be counted");
  const StepShape shape = job.Shape();
  const ModelMemory model = ModelMemoryOf(job);
  PlanResult result;
  std::vector<JobPlan> fitting;
  std::optional<Candidate> leanest;
  ForEachCandidate(job, model, [&](const Candidate& candidate) {
    if (Fits(candidate.memory, job.limits)) fitting.push_back(PlanOf(job, shape, candidate));
    const auto need = [&](const RankMemory& memory) {
      return std::pair(BytesOver(memory, job.limits), memory.whole_bytes());
    };
    if (!leanest || need(candidate.memory) < need(leanest->memory)) leanest = candidate;
    return true;
  });
  result.fits = !fitting.empty();
  if (!result.fits) {
    result.plan = PlanOf(job, shape, *leanest);
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

// Where values may wait in host memory, how many do depends on the device's.
int64_t LeastDeviceBytes(const PlannedJob& job, const ModelMemory& model, int64_t enough) {
  PlannedJob limited = job;
  int64_t too_little = 0;
  while (enough - too_little > 1) {
    const int64_t middle = too_little + (enough - too_little) / 2;
    limited.limits.device = middle;
    (AnyFits(limited, model) ? enough : too_little) = middle;
  }
  return enough;
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
  const ModelMemory model = ModelMemoryOf(job);
  std::optional<int64_t> least;
  ForEachCandidate(job, model, [&](const Candidate& candidate) {
    const RankMemory& memory = candidate.memory;
    const int64_t bytes = job.device.is_host ? memory.whole_bytes() : memory.device_bytes();
    if (Fits(memory, job.limits)) least = std::min(least.value_or(bytes), bytes);
    return true;
  });
  if (!least) return std::nullopt;
  if (!job.device.is_host && job.limits.host != 0) least = LeastDeviceBytes(job, model, *least);
  return SlotMemoryFor(*least, job.device);
}

std::optional<int64_t> LongestContext(const PlannedJob& job) {
  if (!IsLimited(job.limits)) return std::nullopt;
  return LongestContext(job, ModelMemoryOf(job), kContextMax);
}

}  // namespace longspan::planner
