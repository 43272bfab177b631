#include "worker/planner/policy_search.h"

#include <algorithm>

#include "proto/jobfile/job_file.h"
#include "worker/planner/attention_temporaries.h"

namespace longspan::planner {
namespace {

constexpr int64_t kTiles[] = {256, 512, 1024, 2048};
constexpr int64_t kLossTiles[] = {256, 512, 1024, 2048};
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

}  // namespace

// By how much a plan goes beyond the limits.
int64_t BytesOver(const RankMemory& memory, const MemoryLimits& limits) {
  int64_t over = 0;
  if (limits.device) over += std::max<int64_t>(0, memory.device_bytes() - *limits.device);
  if (limits.host) over += std::max<int64_t>(0, memory.host_activations() - *limits.host);
  if (limits.whole) over += std::max<int64_t>(0, memory.whole_bytes() - *limits.whole);
  return over;
}

bool Fits(const RankMemory& memory, const MemoryLimits& limits) { return BytesOver(memory, limits) == 0; }

PolicySearch::PolicySearch(const PlannedJob& job, const ModelMemory& model)
    : job_(job), shape_(job.Shape()), without_policy_(MemoryWithoutPolicy(job, model)) {
  const OpenPolicies open = OpenPoliciesOf(job.spec, shape_);
  for (const MemoryPolicy& policy : TiledPolicies(open)) tiled_.push_back({policy, {}, {}, {}});
  checkpoint_every_ = open.checkpoint_every;
  host_layers_ = open.host_layers;
}

Candidate PolicySearch::CandidateOf(Tiled& tiled, int64_t checkpoint_every, const MemoryLimits& limits, bool laid_out) {
  Candidate candidate{tiled.policy, without_policy_};
  candidate.policy.checkpoint_every = checkpoint_every;
  if (!tiled.attention) tiled.attention = AttentionTemporaries(job_, shape_, tiled.policy);
  candidate.memory.attention = *tiled.attention;
  const size_t runs_again = checkpoint_every > 1 ? 1 : 0;
  std::optional<int64_t>& bytes = (laid_out ? tiled.workspace : tiled.least_workspace)[runs_again];
  if (!bytes) {
    bytes = laid_out ? WorkspaceBytes(shape_, candidate.policy) : LeastWorkspaceBytes(shape_, candidate.policy);
  }
  candidate.memory.workspace = *bytes;
  candidate.policy.host_layers = host_layers_.value_or(HostLayers(shape_, candidate.policy, limits, candidate.memory));
  candidate.policy.host_layers = PlanKeptValues(shape_, candidate.policy).host;
  SetKept(shape_, candidate.policy, &candidate.memory);
  return candidate;
}

void PolicySearch::ForEach(const MemoryLimits& limits, const Take& take) {
  for (Tiled& tiled : tiled_) {
    for (const int64_t every : checkpoint_every_) {
      if (!take(CandidateOf(tiled, every, limits, true))) return;
    }
  }
}

// A larger arena needs no less of any kind of memory: more layers in host memory, or more of the device's.
void PolicySearch::ForEachThatFits(const MemoryLimits& limits, const Take& take) {
  for (Tiled& tiled : tiled_) {
    for (const int64_t every : checkpoint_every_) {
      if (!Fits(CandidateOf(tiled, every, limits, false).memory, limits)) continue;
      const Candidate candidate = CandidateOf(tiled, every, limits, true);
      if (Fits(candidate.memory, limits) && !take(candidate)) return;
    }
  }
}

bool PolicySearch::AnyFits(const MemoryLimits& limits) {
  bool fits = false;
  ForEachThatFits(limits, [&](const Candidate&) {
    fits = true;
    return false;
  });
  return fits;
}

std::optional<int64_t> PolicySearch::LeastOf(const MemoryLimits& chosen_for, const MemoryLimits& limits,
                                             const Measure& measure) {
  struct Bound {
    int64_t bytes;
    Tiled* tiled;
    int64_t checkpoint_every;
  };
  std::vector<Bound> bounds;
  for (Tiled& tiled : tiled_) {
    for (const int64_t every : checkpoint_every_) {
      const RankMemory memory = CandidateOf(tiled, every, chosen_for, false).memory;
      if (Fits(memory, limits)) bounds.push_back({measure(memory), &tiled, every});
    }
  }
  std::sort(bounds.begin(), bounds.end(), [](const Bound& a, const Bound& b) { return a.bytes < b.bytes; });
  std::optional<int64_t> least;
  for (const Bound& bound : bounds) {
    if (least && bound.bytes >= *least) break;
    const RankMemory memory = CandidateOf(*bound.tiled, bound.checkpoint_every, chosen_for, true).memory;
    if (Fits(memory, limits)) least = std::min(least.value_or(measure(memory)), measure(memory));
  }
  return least;
}

std::optional<int64_t> PolicySearch::Least(const MemoryLimits& limits, const Measure& measure) {
  return LeastOf(limits, limits, measure);
}

// Each layer that goes to host memory gives the device as much, so that a policy needs least with as many there as
// may be.
std::optional<int64_t> PolicySearch::LeastDeviceBytes(const MemoryLimits& limits) {
  MemoryLimits smallest = limits;
  smallest.device = 0;
  MemoryLimits others = limits;
  others.device.reset();
  return LeastOf(smallest, others, [](const RankMemory& memory) { return memory.device_bytes(); });
}

}  // namespace longspan::planner
