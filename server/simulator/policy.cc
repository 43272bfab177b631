#include "server/simulator/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "server/scheduler/backfill.h"
#include "server/scheduler/cluster.h"
#include "server/scheduler/placement.h"
#include "server/simulator/slurm.h"

namespace longspan::simulator {
namespace {

using scheduler::Access;
using scheduler::Cluster;
using scheduler::SlotNumber;
using scheduler::Snapshot;
using scheduler::WaitingJob;

class Longspan : public Policy {
 public:
  explicit Longspan(const PolicyOptions& options) : options_(options) {}

  Decision Pass(const Snapshot& snapshot, absl::Time now) override {
    Decision decision{scheduler::Schedule(snapshot, now, options_.scheduler)};
    const bool elastic = std::any_of(snapshot.gangs.begin(), snapshot.gangs.end(),
                                     [](const scheduler::RunningGang& gang) { return gang.sizes.size() > 1; });
    if (!decision.plan.waits.empty() || elastic) decision.again = now + options_.schedule_interval;
    return decision;
  }

 private:
  const PolicyOptions options_;
};

// Strict order; with `backfill`, the first job that does not fit gets the earliest slots it can have, and others may
// use what it leaves.
class Fifo : public Policy {
 public:
  explicit Fifo(bool backfill) : backfill_(backfill) {}

  Decision Pass(const Snapshot& snapshot, absl::Time now) override {
    Decision decision;
    Cluster cluster(snapshot, &decision.plan.work);
    std::vector<scheduler::Holding> holdings = HoldingsOf(snapshot, cluster, now);
    std::optional<absl::Time> blocked_until;
    for (const WaitingJob* job : BySubmitTime(snapshot)) {
      Access access;
      access.requirements = cluster.ClassOf(job->requirements);
      const int64_t size = job->sizes.back();
      if (size > cluster.SlotCount(access.requirements)) continue;  // never: it holds nobody back
      access.shadow = blocked_until && now + job->estimate <= *blocked_until;
      const std::vector<SlotNumber> slots = PlaceGang(size, job->avoid, access, cluster);
      if (!slots.empty()) {
        holdings.push_back({now + job->estimate, slots});
        decision.plan.starts.push_back({job->id, cluster.PlacementsOf(slots)});
        continue;
      }
      if (!backfill_) break;
      if (blocked_until) continue;
      const scheduler::EarliestStart start =
          scheduler::FindEarliestStart(size, job->avoid, access, holdings, cluster, now);
      for (const SlotNumber slot : start.slots) cluster.SetShadow(slot);
      blocked_until = start.time;
    }
    return decision;
  }

 private:
  // As the scheduler: who has outrun his estimate goes on for a tenth of what he has run.
  static std::vector<scheduler::Holding> HoldingsOf(const Snapshot& snapshot, const Cluster& cluster, absl::Time now) {
    std::vector<scheduler::Holding> holdings;
    for (const scheduler::RunningGang& gang : snapshot.gangs) {
      scheduler::Holding& holding = holdings.emplace_back();
      holding.until =
          gang.expected_end > now ? gang.expected_end : now + std::max(absl::Minutes(1), (now - gang.start_time) / 10);
      for (const scheduler::Placement& rank : gang.ranks) {
        if (const auto slot = cluster.Find(rank)) holding.slots.push_back(*slot);
      }
    }
    return holdings;
  }

  const bool backfill_;
};

}  // namespace

std::vector<const WaitingJob*> BySubmitTime(const Snapshot& snapshot) {
  std::vector<const WaitingJob*> jobs;
  for (const WaitingJob& job : snapshot.jobs) {
    if (!job.old_ranks_remain && !job.sizes.empty()) jobs.push_back(&job);
  }
  std::sort(jobs.begin(), jobs.end(), [](const WaitingJob* a, const WaitingJob* b) {
    return std::make_tuple(-a->priority, a->submit_time, std::cref(a->id)) <
           std::make_tuple(-b->priority, b->submit_time, std::cref(b->id));
  });
  return jobs;
}

absl::StatusOr<std::unique_ptr<Policy>> MakePolicy(const std::string& name, const PolicyOptions& options) {
  if (name == "longspan") return std::make_unique<Longspan>(options);
  if (name == "fifo") return std::make_unique<Fifo>(false);
  if (name == "fifo-backfill") return std::make_unique<Fifo>(true);
  if (name == "slurm") return std::make_unique<Slurm>(SlurmOptions());
  return absl::InvalidArgumentError(
      fmt::format("there is no policy {}; longspan, fifo, fifo-backfill and slurm are there", name));
}

}  // namespace longspan::simulator
