#include "server/scheduler/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "server/scheduler/backfill.h"
#include "server/scheduler/cluster.h"
#include "server/scheduler/feasibility.h"
#include "server/scheduler/forecast.h"
#include "server/scheduler/growth.h"
#include "server/scheduler/order.h"
#include "server/scheduler/placement.h"
#include "server/scheduler/reclaim.h"
#include "server/scheduler/wait_messages.h"

namespace longspan::scheduler {
namespace {

// Jobs in one pass that others may be asked to stop for: each costs a placement tried out.
constexpr int kReclaimsMax = 16;
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// One pass over the ordered queue.
class Pass {
 public:
  Pass(const Snapshot& snapshot, absl::Time now, const Options& options)
      : snapshot_(snapshot),
        now_(now),
        options_(options),
        cluster_(snapshot, &plan_.work),
        elsewhere_(ElsewhereText(snapshot.workers)) {
    KeepReservations();
    TakeGangs();
  }

  Plan Run() {
    for (const WaitingJob* job : OrderQueue(snapshot_, now_, options_)) Visit(*job);
    Grow();
    ForecastStarts();
    return std::move(plan_);
  }

 private:
  struct Blocked {  // the first job that must wait for slots
    JobId job_id;
    int64_t size = 0;
    EarliestStart start;
  };

  struct Yielding {  // priorities of gangs that may be asked to give slots back
    int64_t lowest = kNoLimit;
    int64_t lowest_elastic = kNoLimit;
  };

  // ---- before the first job ----

  // Void when one of its slots is not there any more: the job is treated like any other then.
  std::vector<SlotNumber> ReservedSlots(const WaitingJob& job) const {
    std::vector<SlotNumber> slots;
    if (job.reserved_until <= now_) return {};
    for (const Placement& placement : job.reserved) {
      const std::optional<SlotNumber> slot = cluster_.Find(placement);
      if (!slot || !cluster_.Owner(*slot).empty()) return {};
      slots.push_back(*slot);
    }
    return slots;
  }

  void KeepReservations() {
    for (const WaitingJob& job : snapshot_.jobs) {
      const std::vector<SlotNumber> slots = ReservedSlots(job);
      if (slots.empty()) continue;
      for (const SlotNumber slot : slots) cluster_.SetOwner(slot, job.id);
      queue_slots_[job.queue] += static_cast<int64_t>(slots.size());
      holdings_.push_back({now_ + options_.stop_time + job.estimate, slots, true});
      reserved_.emplace(job.id, slots);
    }
  }

  void TakeGangs() {
    for (const RunningGang& gang : snapshot_.gangs) {
      GangSlots& entry = gangs_.emplace_back();
      entry.gang = &gang;
      for (const Placement& rank : gang.ranks) {
        if (const std::optional<SlotNumber> slot = cluster_.Find(rank)) entry.slots.push_back(*slot);
      }
      queue_slots_[gang.queue] += static_cast<int64_t>(gang.ranks.size());
      holdings_.push_back({ExpectedEnd(gang), entry.slots});
    }
  }

  // A gang that has outrun its estimate goes on for a tenth of what it has run: the longer, the less is known.
  absl::Time ExpectedEnd(const RunningGang& gang) const {
    if (gang.stopping || gang.expected_end > now_) return gang.expected_end;
    return now_ + std::max(absl::Minutes(1), (now_ - gang.start_time) / 10);
  }

  // ---- one job ----

  void Visit(const WaitingJob& job) {
    if (job.old_ranks_remain || job.not_before > now_) return Delay(job);
    if (!cluster_.AnyOpen()) return Wait(job, kNoWorkers, "no worker is up and open for new ranks");
    if (job.sizes.empty()) return VisitWithoutSlot(job);
    const ClassNumber requirements = cluster_.ClassOf(job.requirements);
    if (IsImpossible(job, requirements) || IsOverQuota(job)) return;
    if (TryStart(job, requirements)) return;
    if (IsComingFree(job)) return;
    if (TryReclaim(job, requirements)) return;
    if (blocked_) return WaitBehind(job);
    Block(job, requirements);
  }

  void VisitWithoutSlot(const WaitingJob& job) {
    std::vector<Placement> ranks = PlaceWithoutSlot(job.avoid, cluster_);
    if (ranks.empty()) {
      return Wait(job, kWorkersPreparing,
                  "waits to prepare its data: every worker prepares as many jobs as it has slots");
    }
    plan_.starts.push_back({job.id, std::move(ranks)});
  }

  // No set of workers that are there could hold it; it holds nobody back.
  bool IsImpossible(const WaitingJob& job, ClassNumber requirements) {
    const int64_t possible = cluster_.SlotCount(requirements);
    if (job.sizes.front() <= possible) return false;
    const std::string required = Text(job.requirements);
    if (possible == 0 && !required.empty()) {
      Wait(job, kRequirementsNotMet, fmt::format("no worker that is there has {}", required));
    } else {
      Wait(job, kGangExceedsCluster,
           fmt::format("needs {}, all workers that are there have {}{}", SlotsText(job.sizes.front()), possible,
                       required.empty() ? "" : " with " + required));
    }
    return true;
  }

  int64_t SlotsMax(const std::string& queue) const {
    const auto it = snapshot_.queues.find(queue);
    return it == snapshot_.queues.end() || it->second.slots_max == 0 ? kNoLimit : it->second.slots_max;
  }
  // What is reserved for the job itself counts as held by its queue already.
  int64_t SlotsLeft(const WaitingJob& job) const {
    const auto reserved = reserved_.find(job.id);
    return SlotsLeft(job.queue) + (reserved == reserved_.end() ? 0 : static_cast<int64_t>(reserved->second.size()));
  }
  int64_t SlotsLeft(const std::string& queue) const {
    const auto held = queue_slots_.find(queue);
    return SlotsMax(queue) - (held == queue_slots_.end() ? 0 : held->second);
  }

  // A job that waits for its queue's quota holds back the queue, and nobody else.
  bool IsOverQuota(const WaitingJob& job) {
    const int64_t slots_max = SlotsMax(job.queue);
    if (job.sizes.front() > slots_max) {
      Wait(job, kGangExceedsQuota,
           fmt::format("needs {}; queue {} may hold {}", SlotsText(job.sizes.front()), job.queue, slots_max));
      return true;
    }
    const auto first = at_quota_.find(job.queue);
    if (first == at_quota_.end() && job.sizes.front() <= SlotsLeft(job)) return false;
    if (first != at_quota_.end()) {
      Wait(job, kQueueAtQuota, fmt::format("waits behind {} for the quota of queue {}", first->second, job.queue));
    } else {
      Wait(job, kQueueAtQuota,
           fmt::format("needs {}; queue {} holds {} of the {} that it may", SlotsText(job.sizes.front()), job.queue,
                       queue_slots_[job.queue], slots_max));
      at_quota_.emplace(job.queue, job.id);
    }
    return true;
  }

  // What it may use now: slots kept for it; and those that the first waiting job needs, when it has ended by then.
  Access AccessOf(const WaitingJob& job, ClassNumber requirements) const {
    const bool known = blocked_ && blocked_->start.time < absl::InfiniteFuture();
    return {requirements, job.id, known && now_ + job.estimate <= blocked_->start.time};
  }

  bool TryStart(const WaitingJob& job, ClassNumber requirements) {
    const std::vector<SlotNumber> slots =
        PlaceLargest(job.sizes, SlotsLeft(job), job.avoid, AccessOf(job, requirements), cluster_);
    if (slots.empty()) return false;
    DropReservation(job);
    queue_slots_[job.queue] += static_cast<int64_t>(slots.size());
    holdings_.push_back({now_ + job.estimate, slots});
    plan_.starts.push_back({job.id, cluster_.PlacementsOf(slots)});
    return true;
  }

  void DropReservation(const WaitingJob& job) {
    const auto reserved = reserved_.find(job.id);
    if (reserved == reserved_.end()) return;
    for (const SlotNumber slot : reserved->second) cluster_.SetOwner(slot, JobId());
    queue_slots_[job.queue] -= static_cast<int64_t>(reserved->second.size());
    std::erase_if(holdings_, [&](const Holding& h) { return h.reservation && h.slots == reserved->second; });
    reserved_.erase(reserved);
  }

  bool IsComingFree(const WaitingJob& job) {
    const auto reserved = reserved_.find(job.id);
    if (reserved == reserved_.end()) return false;
    std::vector<JobId> stopping;
    absl::Time end = now_;
    for (const GangSlots& gang : gangs_) {
      const bool holds = std::any_of(gang.slots.begin(), gang.slots.end(), [&](SlotNumber slot) {
        return std::find(reserved->second.begin(), reserved->second.end(), slot) != reserved->second.end();
      });
      if (!holds) continue;
      stopping.push_back(gang.gang->id);
      end = std::max(end, gang.gang->expected_end);
    }
    if (stopping.empty()) return false;  // its slots are free, and not enough for it: it became larger
    Wait(job, kSlotsComingFree, StoppingText(stopping), end);
    return true;
  }

  // ---- a job that does not fit now ----

  EarliestStart StartOf(const WaitingJob& job, ClassNumber requirements) const {
    return FindEarliestStart(job.sizes.front(), job.avoid, {requirements, job.id, false}, holdings_, cluster_, now_);
  }

  // Others shrink for it or are preempted, unless it starts about as soon without.
  bool TryReclaim(const WaitingJob& job, ClassNumber requirements) {
    if (reclaims_ == kReclaimsMax || !AnyoneMayYield(job)) return false;
    ++reclaims_;
    if (StartOf(job, requirements).time <= now_ + options_.stop_time) return false;
    const Access access = {requirements, job.id, false};
    Stop::Why why = Stop::Why::kShrinks;
    std::optional<Reclaimed> reclaimed = ReclaimByShrinking(job, access, gangs_, cluster_, now_);
    if (!reclaimed) {
      why = Stop::Why::kPreempted;
      reclaimed = ReclaimByPreempting(job, access, gangs_, cluster_, now_);
    }
    if (!reclaimed) return false;
    std::vector<JobId> stopping;
    for (const Concession& concession : reclaimed->concessions) {
      stopping.push_back(gangs_[concession.gang].gang->id);
      AskToStop(concession, why, job.id);
    }
    Reserve(job, std::move(reclaimed->slots));
    Wait(job, kSlotsComingFree, StoppingText(stopping), now_ + options_.stop_time);
    return true;
  }

  bool AnyoneMayYield(const WaitingJob& job) {
    if (!yielding_) yielding_ = FindYielding();
    return yielding_->lowest < job.priority || yielding_->lowest_elastic <= job.priority;
  }

  // Asked for every job that does not fit, so found once for as long as nobody else is asked to stop.
  Yielding FindYielding() const {
    Yielding yielding;
    for (const GangSlots& gang : gangs_) {
      const RunningGang& running = *gang.gang;
      if (gang.asked || running.stopping || running.protected_until > now_) continue;
      yielding.lowest = std::min(yielding.lowest, running.priority);
      if (running.sizes.size() > 1) yielding.lowest_elastic = std::min(yielding.lowest_elastic, running.priority);
    }
    return yielding;
  }

  // Its slots stay taken, and are let go when it has stopped; what it keeps is kept for it.
  void AskToStop(const Concession& concession, Stop::Why why, const JobId& beneficiary) {
    GangSlots& gang = gangs_[concession.gang];
    gang.asked = true;
    yielding_.reset();
    for (Holding& holding : holdings_) {
      if (!holding.reservation && holding.slots == gang.slots) holding.until = now_ + options_.stop_time;
    }
    for (const SlotNumber slot : concession.keeps) cluster_.SetOwner(slot, gang.gang->id);
    plan_.stops.push_back({gang.gang->id, why, beneficiary, cluster_.PlacementsOf(concession.keeps)});
  }

  void Reserve(const WaitingJob& job, std::vector<SlotNumber> slots) {
    DropReservation(job);
    for (const SlotNumber slot : slots) cluster_.SetOwner(slot, job.id);
    queue_slots_[job.queue] += static_cast<int64_t>(slots.size());
    holdings_.push_back({now_ + options_.stop_time + job.estimate, slots, true});
    plan_.reserves.push_back({job.id, cluster_.PlacementsOf(slots)});
    reserved_.emplace(job.id, std::move(slots));
  }

  void WaitBehind(const WaitingJob& job) {
    if (cluster_.Usable({cluster_.ClassOf(job.requirements), job.id, true}) < job.sizes.front()) {
      return WaitForSlots(job);
    }
    std::string when = "";
    if (blocked_->start.time < absl::InfiniteFuture()) {
      when = fmt::format(" and may start {}", InText(blocked_->start.time - now_));
    }
    Wait(job, kBehindInQueue,
         fmt::format("needs {}, would delay {}, which needs {}{}", SlotsText(job.sizes.front()), blocked_->job_id,
                     blocked_->size, when));
  }

  void WaitForSlots(const WaitingJob& job) {
    const ClassNumber requirements = cluster_.ClassOf(job.requirements);
    Wait(job, kGangDoesNotFit, DoesNotFitText(job, cluster_.Usable({requirements, job.id, true}), elsewhere_));
  }

  void Block(const WaitingJob& job, ClassNumber requirements) {
    WaitForSlots(job);
    blocked_ = {job.id, job.sizes.front(), StartOf(job, requirements)};
    plan_.waits.back().expected_start = blocked_->start.time;
    for (const SlotNumber slot : blocked_->start.slots) cluster_.SetShadow(slot);
  }

  // Keeps what it would get, so that nobody behind it takes its place meanwhile.
  void Delay(const WaitingJob& job) {
    if (job.old_ranks_remain) {
      Wait(job, kRanksStopping, "waits until every rank of the earlier attempt is surely gone");
    } else {
      Wait(job, kBackingOff, "waits a moment before the next attempt", job.not_before);
    }
    if (job.sizes.empty() || blocked_ || reserved_.contains(job.id) || at_quota_.contains(job.queue)) return;
    const ClassNumber requirements = cluster_.ClassOf(job.requirements);
    if (job.sizes.front() > std::min(cluster_.SlotCount(requirements), SlotsLeft(job))) return;
    const std::vector<SlotNumber> slots =
        PlaceLargest(job.sizes, SlotsLeft(job), job.avoid, {requirements, job.id, false}, cluster_);
    if (slots.empty()) {
      blocked_ = {job.id, job.sizes.front(), StartOf(job, requirements)};
      for (const SlotNumber slot : blocked_->start.slots) cluster_.SetShadow(slot);
      return;
    }
    queue_slots_[job.queue] += static_cast<int64_t>(slots.size());
    holdings_.push_back({std::max(now_, job.not_before) + job.estimate, slots});
  }

  // ---- after the last job ----

  static bool WantsSlots(const scheduler::Wait& wait) {
    return wait.reason == kGangDoesNotFit || wait.reason == kBehindInQueue || wait.reason == kSlotsComingFree ||
           wait.reason == kBackingOff || wait.reason == kRanksStopping;
  }

  void Grow() {
    if (std::any_of(plan_.waits.begin(), plan_.waits.end(), WantsSlots)) return;
    const std::optional<Growth> growth =
        FindGrowth(gangs_, cluster_, options_, now_, [&](const std::string& queue) { return SlotsLeft(queue); });
    if (!growth) return;
    AskToStop({growth->gang, growth->slots}, Stop::Why::kGrows, gangs_[growth->gang].gang->id);
  }

  // Positions and expected starts; a job whose start is known better already keeps it.
  void ForecastStarts() {
    Forecast forecast(cluster_, holdings_, now_);
    for (size_t i = 0; i < plan_.waits.size(); ++i) {
      scheduler::Wait& wait = plan_.waits[i];
      wait.position = static_cast<int64_t>(i) + 1;
      const bool listed = wait.reason == kGangDoesNotFit || wait.reason == kBehindInQueue;
      if (!listed) continue;
      const absl::Time expected = forecast.Add(*waiting_[i], cluster_.ClassOf(waiting_[i]->requirements));
      if (wait.reason == kBehindInQueue && blocked_->start.time == absl::InfiniteFuture()) continue;
      wait.expected_start = std::min(wait.expected_start, expected);
    }
  }

  void Wait(const WaitingJob& job, const char* reason, std::string message,
            absl::Time expected_start = absl::InfiniteFuture()) {
    plan_.waits.push_back({job.id, 0, reason, std::move(message), expected_start});
    waiting_.push_back(&job);
  }

  const Snapshot& snapshot_;
  const absl::Time now_;
  const Options& options_;
  Plan plan_;
  Cluster cluster_;
  const std::string elsewhere_;
  std::vector<GangSlots> gangs_;
  std::vector<Holding> holdings_;
  std::map<JobId, std::vector<SlotNumber>> reserved_;
  std::map<std::string, int64_t> queue_slots_;  // held or reserved
  std::map<std::string, JobId> at_quota_;       // the first job of a queue that waits for its quota
  std::optional<Blocked> blocked_;
  std::optional<Yielding> yielding_;
  int reclaims_ = 0;
  std::vector<const WaitingJob*> waiting_;  // beside plan_.waits
};

}  // namespace

void Work::Add(const Work& other) {
  placements += other.placements;
  workers += other.workers;
  slots += other.slots;
  cluster_copies += other.cluster_copies;
}

void Work::TakeMax(const Work& other) {
  placements = std::max(placements, other.placements);
  workers = std::max(workers, other.workers);
  slots = std::max(slots, other.slots);
  cluster_copies = std::max(cluster_copies, other.cluster_copies);
}

Plan Schedule(const Snapshot& snapshot, absl::Time now, const Options& options) {
  return Pass(snapshot, now, options).Run();
}

}  // namespace longspan::scheduler
