#include "server/simulator/slurm.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <tuple>

#include "server/scheduler/placement.h"

namespace longspan::simulator {
namespace {

using scheduler::Access;
using scheduler::Cluster;
using scheduler::SlotNumber;
using scheduler::Snapshot;
using scheduler::WaitingJob;
using scheduler::WorkerNumber;

// The map of planned use that a backfill cycle builds: when nodes get slots back, and which are reserved whole.
class PlannedUse {
 public:
  PlannedUse(const Snapshot& snapshot, const Cluster& cluster, absl::Time now, const SlurmOptions& options)
      : options_(options), now_(now), reserved_(cluster.WorkerCount()) {
    for (const scheduler::RunningGang& gang : snapshot.gangs) {
      std::vector<SlotNumber> slots;
      for (const scheduler::Placement& rank : gang.ranks) {
        if (const auto slot = cluster.Find(rank)) slots.push_back(*slot);
      }
      // A job beyond its limit is expected to end any moment.
      AddRelease(std::max(gang.expected_end, now + options.bf_resolution), std::move(slots));
    }
  }

  // Starts in this cycle use slots until their limit.
  void AddRelease(absl::Time at, std::vector<SlotNumber> slots) {
    releases_.push_back({Rounded(at), std::move(slots)});
  }

  // Earliest time from now on, within the window, at which the gang fits beside what is planned; its slots then.
  // Reserves their nodes when that is later than now. InfiniteFuture when there is none.
  absl::Time Plan(const WaitingJob& job, const Access& access, Cluster& cluster, std::vector<SlotNumber>& slots) {
    const std::set<absl::Time> times = Times();
    std::sort(releases_.begin(), releases_.end(), [](const auto& a, const auto& b) { return a.at < b.at; });
    const int64_t size = job.sizes.back();
    Cluster later = cluster;
    size_t released = 0;
    for (const absl::Time time : times) {
      for (; released < releases_.size() && releases_[released].at <= time; ++released) {
        for (const SlotNumber slot : releases_[released].slots) later.Release(slot);
      }
      if (later.Usable(access) < size) continue;
      const std::vector<WorkerNumber> blocked = Blocked(time, time + job.estimate);
      int64_t usable = later.Usable(access);
      for (const WorkerNumber worker : blocked) usable -= later.UsableOn(worker, access);
      if (usable < size) continue;
      Cluster trial = later;
      for (const WorkerNumber worker : blocked) TakeAll(worker, trial);
      slots = PlaceGang(size, {}, access, trial);
      if (slots.empty()) continue;
      if (time == now_) {
        for (const SlotNumber slot : slots) cluster.Take(slot);
        AddRelease(now_ + job.estimate, slots);
      } else {
        for (const SlotNumber slot : slots) {
          reserved_[cluster.WorkerOf(slot)].push_back({time, Rounded(time + job.estimate)});
        }
      }
      return time;
    }
    return absl::InfiniteFuture();
  }

 private:
  struct ReleaseAt {
    absl::Time at;
    std::vector<SlotNumber> slots;
  };
  struct Interval {
    absl::Time from, to;
  };

  absl::Time Rounded(absl::Time time) const {
    if (time == absl::InfiniteFuture()) return time;
    const absl::Duration past = time - absl::UnixEpoch();
    return absl::UnixEpoch() + absl::Ceil(past, options_.bf_resolution);
  }

  std::set<absl::Time> Times() const {
    std::set<absl::Time> times = {now_};
    for (const ReleaseAt& release : releases_) times.insert(release.at);
    for (const std::vector<Interval>& intervals : reserved_) {
      for (const Interval& interval : intervals) times.insert(interval.to);
    }
    times.erase(times.begin(), times.lower_bound(now_));
    times.erase(times.upper_bound(now_ + options_.bf_window), times.end());
    return times;
  }

  // Workers that somebody has reserved for some time of the interval.
  std::vector<WorkerNumber> Blocked(absl::Time from, absl::Time to) const {
    std::vector<WorkerNumber> workers;
    for (WorkerNumber worker = 0; worker < static_cast<WorkerNumber>(reserved_.size()); ++worker) {
      const bool blocked = std::any_of(reserved_[worker].begin(), reserved_[worker].end(),
                                       [&](const Interval& each) { return each.from < to && from < each.to; });
      if (blocked) workers.push_back(worker);
    }
    return workers;
  }

  static void TakeAll(WorkerNumber worker, Cluster& cluster) {
    for (SlotNumber slot = cluster.SlotsBegin(worker); slot < cluster.SlotsEnd(worker); ++slot) {
      if (!cluster.IsTaken(slot)) cluster.Take(slot);
    }
  }

  const SlurmOptions& options_;
  const absl::Time now_;
  std::vector<ReleaseAt> releases_;
  std::vector<std::vector<Interval>> reserved_;  // by worker
};

}  // namespace

void Slurm::AccountUse(const Snapshot& snapshot, absl::Time now) {
  if (use_time_ > absl::InfinitePast()) {
    const double seconds = absl::ToDoubleSeconds(now - use_time_);
    const double decay = std::exp2(-absl::FDivDuration(now - use_time_, options_.decay_half_life));
    for (auto& [queue, use] : use_) use *= decay;
    for (const auto& [queue, slots] : held_) use_[queue] += static_cast<double>(slots) * seconds;
  }
  use_time_ = now;
  held_.clear();
  for (const scheduler::RunningGang& gang : snapshot.gangs) {
    held_[gang.queue] += static_cast<int64_t>(gang.ranks.size());
  }
}

void Slurm::RankAccounts(const Snapshot& snapshot) {
  double shares = 0, used = 0;
  for (const auto& [queue, rules] : snapshot.queues) {
    shares += rules.weight;
    used += use_[queue];
  }
  std::vector<std::pair<double, std::string>> levels;
  for (const auto& [queue, rules] : snapshot.queues) {
    const double effective = used > 0 ? use_[queue] / used : 0;
    const double level = effective > 0 ? rules.weight / shares / effective : std::numeric_limits<double>::infinity();
    levels.emplace_back(-level, queue);
  }
  std::sort(levels.begin(), levels.end());
  double factor = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    // Ties have the same rank.
    if (i == 0 || levels[i].first != levels[i - 1].first) {
      factor = static_cast<double>(levels.size() - i) / static_cast<double>(levels.size());
    }
    fair_share_[levels[i].second] = factor;
  }
}

std::vector<const WaitingJob*> Slurm::ByPriority(const Snapshot& snapshot, absl::Time now, int64_t slots) const {
  std::vector<std::pair<double, const WaitingJob*>> jobs;
  for (const WaitingJob* job : BySubmitTime(snapshot)) {
    const double age = std::min(1.0, absl::FDivDuration(now - job->submit_time, options_.max_age));
    const double size = static_cast<double>(job->sizes.back()) / static_cast<double>(slots);
    const auto share = fair_share_.find(job->queue);
    const double fair = share == fair_share_.end() ? 1 : share->second;
    const double priority =
        std::floor(options_.weight_age * age + options_.weight_fair_share * fair + options_.weight_job_size * size);
    jobs.emplace_back(priority, job);
  }
  std::stable_sort(jobs.begin(), jobs.end(), [](const auto& a, const auto& b) {
    return std::make_tuple(-a.second->priority, -a.first) < std::make_tuple(-b.second->priority, -b.first);
  });
  std::vector<const WaitingJob*> ordered;
  for (const auto& [priority, job] : jobs) ordered.push_back(job);
  return ordered;
}

Decision Slurm::Pass(const Snapshot& snapshot, absl::Time now) {
  AccountUse(snapshot, now);
  if (now >= ranks_due_) {
    RankAccounts(snapshot);
    ranks_due_ = now + options_.calc_period;
  }
  Decision decision;
  Cluster cluster(snapshot, &decision.plan.work);
  const int64_t slots = cluster.SlotCount(0);
  std::vector<const WaitingJob*> jobs = ByPriority(snapshot, now, slots);
  std::erase_if(jobs, [&](const WaitingJob* job) {
    return job->sizes.back() > cluster.SlotCount(cluster.ClassOf(job->requirements));
  });
  const auto start = [&](const WaitingJob& job, const std::vector<SlotNumber>& taken) {
    decision.plan.starts.push_back({job.id, cluster.PlacementsOf(taken)});
    held_[job.queue] += static_cast<int64_t>(taken.size());
  };
  PlannedUse planned(snapshot, cluster, now, options_);
  size_t next = 0;
  for (; next < jobs.size() && next < options_.default_queue_depth; ++next) {
    Access access;
    access.requirements = cluster.ClassOf(jobs[next]->requirements);
    const std::vector<SlotNumber> taken = PlaceGang(jobs[next]->sizes.back(), {}, access, cluster);
    if (taken.empty()) break;
    planned.AddRelease(now + jobs[next]->estimate, taken);
    start(*jobs[next], taken);
  }
  if (next == jobs.size()) return decision;
  if (now < backfill_due_) {
    decision.again = backfill_due_;
    return decision;
  }
  for (size_t tested = 0; next < jobs.size() && tested < options_.bf_max_job_test; ++next, ++tested) {
    Access access;
    access.requirements = cluster.ClassOf(jobs[next]->requirements);
    std::vector<SlotNumber> taken;
    if (planned.Plan(*jobs[next], access, cluster, taken) == now) start(*jobs[next], taken);
  }
  backfill_due_ = now + options_.bf_interval;
  decision.again = now + options_.bf_interval_idle;
  return decision;
}

}  // namespace longspan::simulator
