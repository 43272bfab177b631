// What holds of every plan, and of every sequence of plans, on random clusters and queues from fixed seeds.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "server/scheduler/schedule.h"
#include "tests/server/scheduler/scenario.h"

namespace longspan::scheduler {
namespace {

const absl::Time kNow = kScenarioNow;
using SlotId = std::pair<WorkerId, int64_t>;

SlotId Id(const Placement& placement) { return {placement.worker_id, placement.slot}; }

class Generator {
 public:
  explicit Generator(uint32_t seed) : random_(seed) {}

  int64_t Below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }

  Snapshot Make(int64_t workers, int64_t slots_max, int64_t jobs) {
    Snapshot snapshot;
    snapshot.kinds = {{"cpu", int64_t{16} << 30}, {"NVIDIA H200", int64_t{141} << 30}};
    for (int64_t w = 0; w < workers; ++w) snapshot.workers.push_back(MakeWorker(w, slots_max));
    for (int64_t j = 0; j < jobs; ++j) snapshot.jobs.push_back(MakeJob(j, workers, slots_max));
    snapshot.queues["q0"].weight = 2;
    snapshot.queues["q1"].slots_max = 1 + Below(2 * slots_max);
    snapshot.queues["q2"].used_slot_seconds = static_cast<double>(Below(100'000));
    PlaceGangs(slots_max, snapshot);
    return snapshot;
  }

 private:
  WorkerSlots MakeWorker(int64_t number, int64_t slots_max) {
    WorkerSlots worker;
    worker.id = WorkerId("w" + std::to_string(number));
    worker.up = Below(8) != 0;
    worker.draining = Below(8) == 0;
    worker.labels["rack"] = std::to_string(number % 3);
    const int64_t slots = Below(slots_max + 1);
    for (int64_t s = 0; s < slots; ++s) worker.slots.push_back({s, static_cast<int32_t>(number % 2), false});
    return worker;
  }

  std::vector<int64_t> Sizes(int64_t slots_max) {
    const int64_t least = 1 + Below(2 * slots_max);
    if (Below(3) != 0) return {least};
    return {least, least + 1 + Below(3), least + 4 + Below(3)};
  }

  WaitingJob MakeJob(int64_t number, int64_t workers, int64_t slots_max) {
    WaitingJob job;
    job.id = JobId("j" + std::to_string(number));
    job.queue = "q" + std::to_string(Below(4));
    job.priority = Below(3) * 25;
    job.submit_time = absl::FromUnixSeconds(Below(5));
    if (Below(6) != 0) job.sizes = Sizes(slots_max);
    job.estimate = absl::Minutes(1 + Below(300));
    if (Below(4) == 0) job.requirements.labels["gpu"] = "H200";
    if (Below(4) == 0) job.avoid.push_back(WorkerId("w" + std::to_string(Below(workers + 1))));
    if (Below(6) == 0) job.not_before = kNow + absl::Seconds(1);
    job.old_ranks_remain = Below(8) == 0;
    return job;
  }

  // Takes free slots from the front, some of which stay free.
  void PlaceGangs(int64_t slots_max, Snapshot& snapshot) {
    RunningGang gang;
    int64_t number = 0;
    for (WorkerSlots& worker : snapshot.workers) {
      for (WorkerSlot& slot : worker.slots) {
        if (Below(3) == 0) continue;
        slot.taken = true;
        gang.ranks.push_back({worker.id, slot.index});
        if (Below(slots_max) != 0) continue;
        snapshot.gangs.push_back(Finish(std::move(gang), number++));
        gang = {};
      }
    }
    if (!gang.ranks.empty()) snapshot.gangs.push_back(Finish(std::move(gang), number));
  }

  RunningGang Finish(RunningGang gang, int64_t number) {
    gang.id = JobId("g" + std::to_string(number));
    gang.queue = "q" + std::to_string(Below(4));
    gang.priority = Below(3) * 25;
    gang.start_time = kNow - absl::Minutes(Below(100));
    gang.expected_end = kNow + absl::Minutes(Below(300) - 20);
    if (Below(4) == 0) gang.protected_until = kNow + absl::Minutes(5);
    gang.stopping = Below(6) == 0;
    gang.ending = gang.stopping && number % 2 == 0;
    const int64_t size = static_cast<int64_t>(gang.ranks.size());
    gang.sizes = {size};
    if (Below(2) == 0) gang.sizes = {1 + Below(size), size, size + 1 + Below(4)};
    std::sort(gang.sizes.begin(), gang.sizes.end());
    gang.sizes.erase(std::unique(gang.sizes.begin(), gang.sizes.end()), gang.sizes.end());
    return gang;
  }

  std::mt19937 random_;
};

Snapshot SmallSnapshot(uint32_t seed) {
  Generator generator(seed);
  // One after the other: compilers differ in the order of arguments.
  const int64_t workers = 1 + generator.Below(6);
  const int64_t jobs = generator.Below(12);
  return generator.Make(workers, 4, jobs);
}

template <typename Row>
const Row* FindRow(const std::vector<Row>& rows, const JobId& id) {
  const auto it = std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.id == id; });
  return it == rows.end() ? nullptr : &*it;
}

const WorkerSlots& WorkerOf(const Snapshot& snapshot, const WorkerId& id) {
  return *std::find_if(snapshot.workers.begin(), snapshot.workers.end(), [&](const auto& w) { return w.id == id; });
}

bool Fits(const Snapshot& snapshot, const Requirements& requirements, const Placement& rank) {
  const WorkerSlots& worker = WorkerOf(snapshot, rank.worker_id);
  return requirements.labels.empty() || snapshot.kinds[worker.slots.at(rank.slot).kind].device == "NVIDIA H200";
}

class PlanPropertyTest : public ::testing::TestWithParam<uint32_t> {};

TEST_P(PlanPropertyTest, StartsWholeGangsOnFreeFittingSlots) {
  const Snapshot snapshot = SmallSnapshot(GetParam());
  const Plan plan = Schedule(snapshot, kNow);
  std::set<SlotId> taken;
  std::set<JobId> named;
  for (const Start& start : plan.starts) {
    const WaitingJob& job = *FindRow(snapshot.jobs, start.job_id);
    EXPECT_TRUE(named.insert(start.job_id).second);
    const int64_t size = static_cast<int64_t>(start.ranks.size());
    EXPECT_TRUE(job.sizes.empty() ? size == 1 : std::find(job.sizes.begin(), job.sizes.end(), size) != job.sizes.end())
        << "a partial gang of " << size;
    EXPECT_TRUE(job.not_before <= kNow && !job.old_ranks_remain);
    for (const Placement& rank : start.ranks) {
      const WorkerSlots& worker = WorkerOf(snapshot, rank.worker_id);
      EXPECT_TRUE(worker.up && !worker.draining);
      EXPECT_EQ(rank.slot == -1, job.sizes.empty());
      if (rank.slot < 0) continue;
      EXPECT_FALSE(worker.slots.at(rank.slot).taken);
      EXPECT_TRUE(taken.insert(Id(rank)).second) << "a slot twice";
      EXPECT_TRUE(Fits(snapshot, job.requirements, rank));
    }
  }
  int64_t position = 0;
  for (const Wait& wait : plan.waits) {
    EXPECT_TRUE(named.insert(wait.job_id).second);
    EXPECT_EQ(wait.position, ++position);
    EXPECT_FALSE(wait.reason.empty() || wait.message.empty());
  }
  EXPECT_EQ(named.size(), snapshot.jobs.size()) << "every job starts or has a reason";
}

TEST_P(PlanPropertyTest, StopsOnlyWhomItMay) {
  const Snapshot snapshot = SmallSnapshot(GetParam());
  const Plan plan = Schedule(snapshot, kNow);
  std::set<JobId> stopped;
  for (const Stop& stop : plan.stops) {
    const RunningGang& gang = *FindRow(snapshot.gangs, stop.job_id);
    EXPECT_TRUE(stopped.insert(stop.job_id).second);
    EXPECT_TRUE(!gang.stopping && gang.protected_until <= kNow);
    const int64_t kept = static_cast<int64_t>(stop.keep.size());
    EXPECT_TRUE(kept == 0 || std::find(gang.sizes.begin(), gang.sizes.end(), kept) != gang.sizes.end());
    const WaitingJob* job = FindRow(snapshot.jobs, stop.beneficiary);
    switch (stop.why) {
      case Stop::Why::kPreempted:
        EXPECT_LT(gang.priority, job->priority);
        EXPECT_EQ(kept, 0);
        break;
      case Stop::Why::kShrinks:
        EXPECT_LE(gang.priority, job->priority);
        EXPECT_LT(kept, static_cast<int64_t>(gang.ranks.size()));
        break;
      case Stop::Why::kGrows:
        EXPECT_EQ(stop.beneficiary, stop.job_id);
        EXPECT_GT(kept, static_cast<int64_t>(gang.ranks.size()));
        break;
    }
  }
  for (const Reserve& reserve : plan.reserves) {
    const WaitingJob& job = *FindRow(snapshot.jobs, reserve.job_id);
    EXPECT_EQ(static_cast<int64_t>(reserve.slots.size()), job.sizes.front()) << "the whole gang, and no more";
  }
}

TEST_P(PlanPropertyTest, KeepsQuotas) {
  const Snapshot snapshot = SmallSnapshot(GetParam());
  const Plan plan = Schedule(snapshot, kNow);
  std::map<std::string, int64_t> before, after;
  for (const RunningGang& gang : snapshot.gangs) before[gang.queue] += static_cast<int64_t>(gang.ranks.size());
  after = before;
  for (const Start& start : plan.starts) {
    const WaitingJob& job = *FindRow(snapshot.jobs, start.job_id);
    if (!job.sizes.empty()) after[job.queue] += static_cast<int64_t>(start.ranks.size());
  }
  for (const auto& [name, queue] : snapshot.queues) {
    if (queue.slots_max > 0 && after[name] > before[name]) {
      EXPECT_LE(after[name], queue.slots_max) << name;
    }
  }
}

// The first job that does not fit now could start at the time that was found for it also with the starts behind it:
// what they took ends before, or it is enough without.
TEST_P(PlanPropertyTest, BackfillDelaysNotTheFirst) {
  Snapshot snapshot = SmallSnapshot(GetParam());
  for (WaitingJob& job : snapshot.jobs) {
    job.avoid.clear();
    job.not_before = absl::InfinitePast();
    job.old_ranks_remain = false;
  }
  for (RunningGang& gang : snapshot.gangs) gang.protected_until = absl::InfiniteFuture();
  const Plan plan = Schedule(snapshot, kNow);
  const auto first = std::find_if(plan.waits.begin(), plan.waits.end(),
                                  [](const Wait& wait) { return wait.reason == kGangDoesNotFit; });
  if (first == plan.waits.end() || first->expected_start == absl::InfiniteFuture()) return;
  const WaitingJob& job = *FindRow(snapshot.jobs, first->job_id);
  std::set<SlotId> busy;
  for (const RunningGang& gang : snapshot.gangs) {
    if (gang.expected_end <= first->expected_start) continue;
    for (const Placement& rank : gang.ranks) busy.insert(Id(rank));
  }
  for (const Start& start : plan.starts) {
    if (kNow + FindRow(snapshot.jobs, start.job_id)->estimate <= first->expected_start) continue;
    for (const Placement& rank : start.ranks) busy.insert(Id(rank));
  }
  int64_t free_then = 0;
  for (const WorkerSlots& worker : snapshot.workers) {
    if (!worker.up || worker.draining) continue;
    for (const WorkerSlot& slot : worker.slots) {
      const Placement rank{worker.id, slot.index};
      free_then += !busy.contains(Id(rank)) && Fits(snapshot, job.requirements, rank);
    }
  }
  EXPECT_GE(free_then, job.sizes.front()) << job.id;
}

// Carries plans out with nothing else happening but that stopped gangs have stopped. It comes to rest, and no state
// comes twice: nobody is preempted for somebody who then makes room for him.
class ClosedCluster {
 public:
  explicit ClosedCluster(Snapshot snapshot) : snapshot_(std::move(snapshot)) {}

  // False when the plan changed nothing.
  bool Step() {
    const Plan plan = Schedule(snapshot_, kNow);
    for (const Stop& stop : plan.stops) Put(stop);
    for (const Reserve& reserve : plan.reserves) {
      const auto job = std::find_if(snapshot_.jobs.begin(), snapshot_.jobs.end(),
                                    [&](const WaitingJob& row) { return row.id == reserve.job_id; });
      job->reserved = reserve.slots;
      job->reserved_until = kNow + absl::Minutes(5);
    }
    for (const Start& start : plan.starts) Put(start);
    return !plan.stops.empty() || !plan.starts.empty();
  }

  std::string State() const {
    std::map<JobId, std::string> rows;
    for (const RunningGang& gang : snapshot_.gangs) {
      for (const Placement& rank : gang.ranks)
        rows[gang.id] += rank.worker_id.value() + std::to_string(rank.slot) + "+";
    }
    for (const WaitingJob& job : snapshot_.jobs) {
      rows[job.id] = "waits";
      for (const Placement& slot : job.reserved)
        rows[job.id] += " " + slot.worker_id.value() + std::to_string(slot.slot);
    }
    std::string text;
    for (const auto& [id, where] : rows) text += id.value() + " " + where + "\n";
    return text;
  }

 private:
  void Mark(const std::vector<Placement>& ranks, bool taken) {
    for (const Placement& rank : ranks) {
      if (rank.slot < 0) continue;
      const_cast<WorkerSlots&>(WorkerOf(snapshot_, rank.worker_id)).slots.at(rank.slot).taken = taken;
    }
  }

  void Put(const Stop& stop) {
    const auto gang = std::find_if(snapshot_.gangs.begin(), snapshot_.gangs.end(),
                                   [&](const RunningGang& row) { return row.id == stop.job_id; });
    WaitingJob job;
    job.id = gang->id;
    job.queue = gang->queue;
    job.priority = gang->priority;
    job.submit_time = absl::UnixEpoch();
    job.sizes = gang->sizes;
    job.requirements = gang->requirements;
    job.reserved = stop.keep;
    job.reserved_until = stop.keep.empty() ? absl::InfinitePast() : kNow + absl::Minutes(5);
    Mark(gang->ranks, false);
    snapshot_.gangs.erase(gang);
    snapshot_.jobs.push_back(std::move(job));
  }

  void Put(const Start& start) {
    const auto job = std::find_if(snapshot_.jobs.begin(), snapshot_.jobs.end(),
                                  [&](const WaitingJob& row) { return row.id == start.job_id; });
    if (!job->sizes.empty()) {
      RunningGang gang;
      gang.id = job->id;
      gang.queue = job->queue;
      gang.priority = job->priority;
      gang.ranks = start.ranks;
      gang.start_time = kNow;
      gang.expected_end = kNow + job->estimate;
      gang.sizes = job->sizes;
      gang.requirements = job->requirements;
      Mark(gang.ranks, true);
      snapshot_.gangs.push_back(std::move(gang));
    }
    snapshot_.jobs.erase(job);
  }

  Snapshot snapshot_;
};

TEST_P(PlanPropertyTest, ComesToRestWithoutRepeatingAState) {
  ClosedCluster cluster(SmallSnapshot(GetParam()));
  std::set<std::string> states = {cluster.State()};
  for (int pass = 0; pass < 200; ++pass) {
    if (!cluster.Step()) return;
    const std::string state = cluster.State();
    // A start of a job without slots changes nothing that is shown.
    if (!states.insert(state).second) {
      ASSERT_FALSE(cluster.Step()) << "seed " << GetParam() << " comes back to\n" << state;
      return;
    }
  }
  FAIL() << "seed " << GetParam() << " does not come to rest";
}

TEST_P(PlanPropertyTest, IsAFunctionOfTheSnapshot) {
  Snapshot snapshot = SmallSnapshot(GetParam());
  const std::string text = ToText(Schedule(snapshot, kNow), kNow);
  std::reverse(snapshot.jobs.begin(), snapshot.jobs.end());
  EXPECT_EQ(ToText(Schedule(snapshot, kNow), kNow), text) << "the order of the rows is no information";
}

INSTANTIATE_TEST_SUITE_P(Seeds, PlanPropertyTest, ::testing::Range(0u, 500u));

// The size it is meant for. The limit is generous: sanitizers and a busy machine are slow.
TEST(ScheduleSizeTest, AThousandWorkersAndTenThousandJobs) {
  Generator generator(7);
  const Snapshot snapshot = generator.Make(1000, 8, 10'000);
  const auto begin = std::chrono::steady_clock::now();
  const Plan plan = Schedule(snapshot, kNow);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  RecordProperty("milliseconds", static_cast<int>(seconds * 1000));
  EXPECT_LT(seconds, 30.0);
  EXPECT_EQ(plan.starts.size() + plan.waits.size(), snapshot.jobs.size());
}

}  // namespace
}  // namespace longspan::scheduler
