#include "server/scheduler/reclaim.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "server/scheduler/placement.h"

namespace longspan::scheduler {
namespace {

struct Candidate {
  size_t gang = 0;
  std::vector<SlotNumber> gives;  // that the job can use; those to go first at the front
};

int64_t Gives(const Candidate& candidate) { return static_cast<int64_t>(candidate.gives.size()); }

bool MayBeAsked(const GangSlots& gang, absl::Time now) {
  return !gang.asked && !gang.gang->stopping && gang.gang->protected_until <= now;
}

// Slots of the gang that the job can use, those on workers with the fewest of them first: what it keeps stays together.
std::vector<SlotNumber> FeasibleSlots(const GangSlots& gang, ClassNumber requirements, const Cluster& cluster) {
  std::map<WorkerNumber, int64_t> here;
  std::vector<SlotNumber> slots;
  for (const SlotNumber slot : gang.slots) {
    ++here[cluster.WorkerOf(slot)];
    if (cluster.IsFeasible(slot, requirements) && cluster.Owner(slot).empty()) slots.push_back(slot);
  }
  std::stable_sort(slots.begin(), slots.end(),
                   [&](SlotNumber a, SlotNumber b) { return here[cluster.WorkerOf(a)] < here[cluster.WorkerOf(b)]; });
  return slots;
}

// Sum of the `count` largest that are not chosen, without `except`. `by_gives` is sorted, largest first.
int64_t SumOfLargest(const std::vector<Candidate>& by_gives, const std::vector<bool>& chosen, size_t except,
                     size_t count) {
  int64_t sum = 0;
  for (size_t i = 0; i < by_gives.size() && count > 0; ++i) {
    if (chosen[i] || i == except) continue;
    sum += Gives(by_gives[i]);
    --count;
  }
  return sum;
}

// The smallest set that gives `needed`; of several, the first in the order of lowest priority, latest start. A
// candidate that no smallest set can hold together with the chosen ones is passed over, and need not be looked at
// again.
std::vector<Candidate> ChooseFewest(std::vector<Candidate> candidates, const std::vector<GangSlots>& gangs,
                                    int64_t needed) {
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return Gives(a) > Gives(b); });
  size_t fewest = 0;
  int64_t sum = 0;
  while (fewest < candidates.size() && sum < needed) sum += Gives(candidates[fewest++]);
  if (sum < needed) return {};

  std::vector<size_t> preference(candidates.size());
  for (size_t i = 0; i < preference.size(); ++i) preference[i] = i;
  std::sort(preference.begin(), preference.end(), [&](size_t a, size_t b) {
    const RunningGang& x = *gangs[candidates[a].gang].gang;
    const RunningGang& y = *gangs[candidates[b].gang].gang;
    return std::tie(x.priority, y.start_time, x.id) < std::tie(y.priority, x.start_time, y.id);
  });
  std::vector<bool> chosen(candidates.size());
  std::vector<Candidate> result;
  for (const size_t i : preference) {
    if (result.size() == fewest) break;
    const size_t others = fewest - result.size() - 1;
    if (Gives(candidates[i]) + SumOfLargest(candidates, chosen, i, others) < needed) continue;
    chosen[i] = true;
    needed -= Gives(candidates[i]);
    result.push_back(candidates[i]);
  }
  return result;
}

std::optional<Reclaimed> TryPlacement(const WaitingJob& job, const Access& access, const std::vector<Candidate>& chosen,
                                      Cluster cluster) {
  ++cluster.work().cluster_copies;
  for (const Candidate& candidate : chosen) {
    for (const SlotNumber slot : candidate.gives) cluster.Release(slot);
  }
  Reclaimed reclaimed;
  reclaimed.slots = PlaceGang(job.sizes.front(), job.avoid, access, cluster);
  if (reclaimed.slots.empty()) return std::nullopt;
  return reclaimed;
}

// The largest legal size that still leaves `needed` of `held`; its smallest when none does.
int64_t SizeThatLeaves(const std::vector<int64_t>& sizes, int64_t held, int64_t needed) {
  int64_t kept = sizes.front();
  for (const int64_t size : sizes) {
    if (size < held && held - size >= needed) kept = size;
  }
  return kept;
}

}  // namespace

std::optional<Reclaimed> ReclaimByShrinking(const WaitingJob& job, const Access& access,
                                            const std::vector<GangSlots>& gangs, const Cluster& cluster,
                                            absl::Time now) {
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < gangs.size(); ++i) {
    const RunningGang& gang = *gangs[i].gang;
    const int64_t held = static_cast<int64_t>(gangs[i].slots.size());
    const bool whole = gangs[i].slots.size() == gang.ranks.size();  // none on a worker that is not open
    if (!MayBeAsked(gangs[i], now) || !whole || gang.priority > job.priority || gang.sizes.empty()) continue;
    if (held <= gang.sizes.front()) continue;
    Candidate candidate{i, FeasibleSlots(gangs[i], access.requirements, cluster)};
    candidate.gives.resize(std::min(Gives(candidate), held - gang.sizes.front()));
    if (!candidate.gives.empty()) candidates.push_back(std::move(candidate));
  }
  int64_t missing = job.sizes.front() - cluster.Usable(access);
  std::vector<Candidate> chosen = ChooseFewest(std::move(candidates), gangs, missing);
  if (chosen.empty()) return std::nullopt;
  // No gang shrinks further than it must.
  int64_t excess = -missing;
  for (const Candidate& candidate : chosen) excess += Gives(candidate);
  for (Candidate& candidate : chosen) {
    const GangSlots& gang = gangs[candidate.gang];
    const int64_t held = static_cast<int64_t>(gang.slots.size());
    const int64_t kept = SizeThatLeaves(gang.gang->sizes, held, Gives(candidate) - excess);
    const int64_t given = std::min(Gives(candidate), held - kept);
    excess -= Gives(candidate) - given;
    candidate.gives.resize(given);
  }
  std::optional<Reclaimed> reclaimed = TryPlacement(job, access, chosen, cluster);
  if (!reclaimed) return std::nullopt;
  for (const Candidate& candidate : chosen) {
    const GangSlots& gang = gangs[candidate.gang];
    // A size between two legal ones would not start again: what is given beyond the need goes to whoever comes next.
    const int64_t kept = SizeThatLeaves(gang.gang->sizes, static_cast<int64_t>(gang.slots.size()), Gives(candidate));
    Concession concession{candidate.gang, {}};
    for (const SlotNumber slot : gang.slots) {
      const bool given = std::find(candidate.gives.begin(), candidate.gives.end(), slot) != candidate.gives.end();
      if (!given && static_cast<int64_t>(concession.keeps.size()) < kept) concession.keeps.push_back(slot);
    }
    reclaimed->concessions.push_back(std::move(concession));
  }
  return reclaimed;
}

std::optional<Reclaimed> ReclaimByPreempting(const WaitingJob& job, const Access& access,
                                             const std::vector<GangSlots>& gangs, const Cluster& cluster,
                                             absl::Time now) {
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < gangs.size(); ++i) {
    if (!MayBeAsked(gangs[i], now) || gangs[i].gang->priority >= job.priority) continue;
    Candidate candidate{i, FeasibleSlots(gangs[i], access.requirements, cluster)};
    if (!candidate.gives.empty()) candidates.push_back(std::move(candidate));
  }
  const std::vector<Candidate> chosen =
      ChooseFewest(std::move(candidates), gangs, job.sizes.front() - cluster.Usable(access));
  if (chosen.empty()) return std::nullopt;
  std::optional<Reclaimed> reclaimed = TryPlacement(job, access, chosen, cluster);
  if (!reclaimed) return std::nullopt;
  for (const Candidate& candidate : chosen) reclaimed->concessions.push_back({candidate.gang, {}});
  return reclaimed;
}

}  // namespace longspan::scheduler
