// An hour of a busy cluster in seconds: jobs come, train and end, and the core's memory stays what it is.
#include <gtest/gtest.h>
#include <malloc.h>

#include "tests/server/scale/steady_cluster.h"

namespace longspan::testing {
namespace {

constexpr int64_t kWorkers = 20;
constexpr int64_t kSlots = 8;
constexpr int64_t kFinishedMax = 300;
constexpr int64_t kWaiting = 100;  // jobs, all the time

int64_t HeapBytes() { return static_cast<int64_t>(mallinfo2().uordblks); }

TEST(VirtualHour, MemoryIsBounded) {
  core::CoreOptions options;
  options.keep_finished_max = kFinishedMax;
  int64_t samples = 0;
  SteadyCluster cluster(options, kWorkers, kSlots, [&](const core::Transaction& transaction) {
    samples += static_cast<int64_t>(transaction.samples.size());
  });
  int64_t submitted = 0;
  const auto submit_what_waits = [&] {
    for (int64_t waiting = cluster.core().JobsByState()[static_cast<int>(core::JobState::kQueued)]; waiting < kWaiting;
         ++waiting) {
      const int64_t ranks = int64_t{1} << (submitted % 4);
      cluster.Step(cluster.Job(ranks, 60 + 7 * (submitted % 20)));
      ++submitted;
    }
  };
  int64_t after_twenty_minutes = 0, after_forty_minutes = 0;
  for (int second = 1; second <= 3600; ++second) {
    cluster.Advance(absl::Seconds(1));
    for (const auto& worker : cluster.workers()) {
      cluster.Train(*worker);
      cluster.Report(*worker);
    }
    submit_what_waits();
    cluster.Tick();
    if (second == 1200) after_twenty_minutes = HeapBytes();
    if (second == 2400) after_forty_minutes = HeapBytes();
  }
  const int64_t after_an_hour = HeapBytes();
  RecordProperty("jobs", static_cast<int>(submitted));
  RecordProperty("samples", static_cast<int>(samples));
  RecordProperty("heap_bytes", static_cast<int>(after_an_hour));
  // It was an hour of work.
  EXPECT_GT(submitted, 4 * kFinishedMax);
  EXPECT_GT(samples, 3600 * kWorkers);
  EXPECT_EQ(cluster.core().JobsByState()[static_cast<int>(core::JobState::kSucceeded)], kFinishedMax);
  EXPECT_EQ(cluster.core().JobsByState()[static_cast<int>(core::JobState::kFailed)], 0);
  if (LONGSPAN_IS_SANITIZED) GTEST_SKIP() << "a sanitizer's allocator counts otherwise";
  const double allowed = 1.03 * static_cast<double>(after_twenty_minutes);
  EXPECT_LE(static_cast<double>(after_forty_minutes), allowed);
  EXPECT_LE(static_cast<double>(after_an_hour), allowed);
}

}  // namespace
}  // namespace longspan::testing
