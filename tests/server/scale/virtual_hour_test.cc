// An hour of a busy cluster in seconds: jobs come, train and end, and the core's memory stays what it is.
#include <gtest/gtest.h>
#include <malloc.h>

#include <array>

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
  // Of each third: what the heap held in the mean over its seconds.
  std::array<double, 3> heap_mean{};
  std::array<int64_t, 3> submitted_by{};
  for (int second = 0; second < 3600; ++second) {
    cluster.Advance(absl::Seconds(1));
    for (const auto& worker : cluster.workers()) {
      cluster.Train(*worker);
      cluster.Report(*worker);
    }
    submit_what_waits();
    cluster.Tick();
    heap_mean[second / 1200] += static_cast<double>(HeapBytes()) / 1200;
    submitted_by[second / 1200] = submitted;
  }
  RecordProperty("jobs", static_cast<int>(submitted));
  RecordProperty("samples", static_cast<int>(samples));
  RecordProperty("heap_bytes", static_cast<int>(heap_mean[2]));
  // It was an hour of work.
  EXPECT_GT(submitted, 4 * kFinishedMax);
  EXPECT_GT(samples, 3600 * kWorkers);
  EXPECT_EQ(cluster.core().JobsByState()[static_cast<int>(core::JobState::kSucceeded)], kFinishedMax);
  EXPECT_EQ(cluster.core().JobsByState()[static_cast<int>(core::JobState::kFailed)], 0);
  if (LONGSPAN_IS_SANITIZED) GTEST_SKIP() << "a sanitizer's allocator counts otherwise";
  // In the first third jobs end that are kept; after it each that is forgotten makes room for the next. Less than the
  // smallest node of a map stays of a job.
  const double growth = (heap_mean[2] - heap_mean[1]) / static_cast<double>(submitted_by[2] - submitted_by[1]);
  RecordProperty("heap_bytes_per_job", static_cast<int>(growth));
  EXPECT_LT(growth, 48) << heap_mean[1] << " bytes, then " << heap_mean[2];
}

}  // namespace
}  // namespace longspan::testing
