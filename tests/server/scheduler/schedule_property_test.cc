// What holds of every plan, on random clusters and queues from fixed seeds.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <random>
#include <set>

#include "server/scheduler/schedule.h"

namespace longspan::scheduler {
namespace {

const absl::Time kNow = absl::FromUnixSeconds(1000);

class Generator {
 public:
  explicit Generator(uint32_t seed) : random_(seed) {}

  int64_t Below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }

  Snapshot Make(int64_t workers, int64_t slots_max, int64_t jobs) {
    Snapshot snapshot;
    for (int64_t w = 0; w < workers; ++w) {
      WorkerSlots& worker = snapshot.workers.emplace_back();
      worker.id = WorkerId("w" + std::to_string(w));
      worker.up = Below(5) != 0;
      worker.draining = Below(5) == 0;
      worker.slot_count = Below(slots_max + 1);
      for (int64_t s = 0; s < worker.slot_count; ++s) {
        if (Below(3) != 0) worker.free_slots.push_back(s);
      }
    }
    for (int64_t j = 0; j < jobs; ++j) {
      WaitingJob& job = snapshot.jobs.emplace_back();
      job.id = JobId("j" + std::to_string(j));
      job.priority = Below(3) * 25;
      job.submit_time = absl::FromUnixSeconds(Below(5));
      job.slots = Below(2 * slots_max + 2);
      if (Below(4) == 0) job.avoid.push_back(WorkerId("w" + std::to_string(Below(workers + 1))));
      if (Below(6) == 0) job.not_before = kNow + absl::Seconds(1);
      job.old_ranks_remain = Below(8) == 0;
    }
    return snapshot;
  }

 private:
  std::mt19937 random_;
};

class PlanPropertyTest : public ::testing::TestWithParam<uint32_t> {};

TEST_P(PlanPropertyTest, IsSafe) {
  Generator generator(GetParam());
  const Snapshot snapshot = generator.Make(1 + generator.Below(6), 4, generator.Below(12));
  const Plan plan = Schedule(snapshot, kNow);

  std::map<WorkerId, const WorkerSlots*> workers;
  for (const WorkerSlots& worker : snapshot.workers) workers[worker.id] = &worker;
  std::map<JobId, const WaitingJob*> jobs;
  for (const WaitingJob& job : snapshot.jobs) jobs[job.id] = &job;

  std::set<std::pair<WorkerId, int64_t>> taken;
  std::set<JobId> named;
  for (const Start& start : plan.starts) {
    const WaitingJob& job = *jobs.at(start.job_id);
    EXPECT_TRUE(named.insert(start.job_id).second);
    EXPECT_EQ(static_cast<int64_t>(start.ranks.size()), std::max<int64_t>(1, job.slots)) << "a partial gang";
    EXPECT_TRUE(job.not_before <= kNow && !job.old_ranks_remain);
    for (const Placement& rank : start.ranks) {
      const WorkerSlots& worker = *workers.at(rank.worker_id);
      EXPECT_TRUE(worker.up && !worker.draining);
      if (job.slots == 0) {
        EXPECT_EQ(rank.slot, -1);
        continue;
      }
      EXPECT_TRUE(std::count(worker.free_slots.begin(), worker.free_slots.end(), rank.slot))
          << "a slot that is not free";
      EXPECT_TRUE(taken.emplace(rank.worker_id, rank.slot).second) << "a slot given twice";
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

// The first job that is told that it does not fit really finds too few free slots, with those in front of it placed.
TEST_P(PlanPropertyTest, NobodyWaitsOverFreeSlots) {
  Generator generator(GetParam());
  Snapshot snapshot = generator.Make(1 + generator.Below(6), 4, 1 + generator.Below(12));
  for (WaitingJob& job : snapshot.jobs) {
    job.not_before = absl::InfinitePast();  // a job that waits for itself keeps slots
    job.old_ranks_remain = false;
  }
  const Plan plan = Schedule(snapshot, kNow);
  int64_t free_slots = 0;
  for (const WorkerSlots& worker : snapshot.workers) {
    if (worker.up && !worker.draining) free_slots += static_cast<int64_t>(worker.free_slots.size());
  }
  for (const Start& start : plan.starts) {
    for (const Placement& rank : start.ranks) free_slots -= rank.slot >= 0 ? 1 : 0;
  }
  const auto blocked = std::find_if(plan.waits.begin(), plan.waits.end(),
                                    [](const Wait& wait) { return wait.reason == kGangDoesNotFit; });
  if (blocked == plan.waits.end()) return;
  for (const WaitingJob& job : snapshot.jobs) {
    if (job.id == blocked->job_id) {
      EXPECT_LT(free_slots, job.slots);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, PlanPropertyTest, ::testing::Range(0u, 300u));

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
