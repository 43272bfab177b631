// What a submit and a report cost the coordinator's thread at the size that the service is meant for: a thousand
// workers of eight slots, all full, with the real store. Counts are the same on every machine; processor time has room
// for slower ones. The rates with gRPC are in tests/bench.
#include <gtest/gtest.h>
#include <time.h>

#include "proto/support/check.h"
#include "server/store/sqlite_store.h"
#include "tests/server/scale/steady_cluster.h"
#include "tests/temporary_folder.h"

namespace longspan::testing {
namespace {

// As recorded (2 cores of an EPYC, RelWithDebInfo).
constexpr double kSubmitMicroseconds = 15;
constexpr double kReportMicroseconds = 44;
constexpr double kQuietReportMicroseconds = 8;

constexpr bool kTimesMeanSomething = !LONGSPAN_IS_SANITIZED;
constexpr int64_t kWorkers = LONGSPAN_IS_SANITIZED ? 50 : 1000;
constexpr int64_t kSlots = 8;
constexpr int64_t kRanks = 4;
constexpr int64_t kForEver = 1'000'000;

double ThreadMicroseconds() {
  timespec time;
  CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0);
  return 1e6 * static_cast<double>(time.tv_sec) + 1e-3 * static_cast<double>(time.tv_nsec);
}

class CostTest : public ::testing::Test {
 protected:
  CostTest() {
    auto store = store::OpenSqliteStore(folder_.File("longspan.db"));
    CHECK(store.ok()) << store.status();
    store_ = *std::move(store);
    cluster_ = std::make_unique<SteadyCluster>(core::CoreOptions{}, kWorkers, kSlots,
                                               [this](const core::Transaction& t) { Take(t); });
  }

  // Several steps share a commit, as the coordinator does it.
  void Take(const core::Transaction& transaction) {
    jobs_ += static_cast<int64_t>(transaction.jobs.size());
    events_ += static_cast<int64_t>(transaction.events.size());
    samples_ += static_cast<int64_t>(transaction.samples.size());
    for (const core::AttemptWrite& attempt : transaction.attempts) {
      ++attempts_;
      if (attempt.ranks_changed) ranks_ += static_cast<int64_t>(attempt.ranks.size());
    }
    group_.Append(core::Transaction(transaction));
    if (++grouped_ == 64) CommitGroup();
  }
  void CommitGroup() {
    grouped_ = 0;
    CHECK(store_->Commit(std::exchange(group_, {})).ok());
  }
  void ResetCounts() { jobs_ = events_ = samples_ = attempts_ = ranks_ = 0; }

  // Microseconds of one, with its part of the commits.
  double Submit(int64_t count) {
    CommitGroup();
    ResetCounts();
    const double start = ThreadMicroseconds();
    for (int64_t i = 0; i < count; ++i) cluster_->Step(cluster_->Job(kRanks, kForEver));
    CommitGroup();
    return (ThreadMicroseconds() - start) / static_cast<double>(count);
  }
  void Fill() {
    Submit(kWorkers * kSlots / kRanks);
    cluster_->Tick();
    cluster_->Settle();
  }
  double Report(bool with_samples) {
    cluster_->Advance(absl::Seconds(1));
    CommitGroup();
    ResetCounts();
    double microseconds = 0;
    for (const auto& worker : cluster_->workers()) {
      if (with_samples) cluster_->Train(*worker);
      const core::WorkerReport report = worker->MakeReport(cluster_->now());
      const double start = ThreadMicroseconds();
      const core::Effects effects = cluster_->Step(report);
      EXPECT_EQ(cluster_->core().DesiredFingerprint(worker->id()), report.desired_fingerprint);
      microseconds += ThreadMicroseconds() - start;
      worker->Apply(std::get<core::ReportReply>(effects.reply), cluster_->core().Desired(worker->id()),
                    cluster_->now());
    }
    const double start = ThreadMicroseconds();
    CommitGroup();
    return (microseconds + ThreadMicroseconds() - start) / static_cast<double>(kWorkers);
  }

  TemporaryFolder folder_;
  std::unique_ptr<store::Store> store_;
  core::Transaction group_;
  int64_t grouped_ = 0;
  int64_t jobs_ = 0, events_ = 0, samples_ = 0, attempts_ = 0, ranks_ = 0;
  std::unique_ptr<SteadyCluster> cluster_;
};

void ExpectCost(const char* what, double microseconds, double recorded) {
  ::testing::Test::RecordProperty(what, static_cast<int>(microseconds));
  if (kTimesMeanSomething) {
    EXPECT_LE(microseconds, 3 * recorded) << what;
  }
}

TEST_F(CostTest, OfASubmitIsOneRowAndOneEvent) {
  Fill();
  const int64_t count = kWorkers;
  const double microseconds = Submit(count);
  EXPECT_EQ(jobs_, count);
  EXPECT_EQ(events_, count);
  EXPECT_EQ(attempts_, 0);
  ExpectCost("submit_microseconds", microseconds, kSubmitMicroseconds);
}

TEST_F(CostTest, OfAReportIsWhatItChangesAlsoWhenManyJobsWait) {
  Fill();
  const double without_waiting = Report(true);
  EXPECT_EQ(samples_, kWorkers * kSlots / kRanks);
  EXPECT_EQ(jobs_, samples_);
  EXPECT_EQ(attempts_, samples_);
  EXPECT_EQ(ranks_, 0) << "of a step no row of a rank is written";
  EXPECT_EQ(events_, 0);
  ExpectCost("report_microseconds", without_waiting, kReportMicroseconds);

  Submit(10 * kWorkers);
  cluster_->Settle();
  ExpectCost("report_microseconds_10000_wait", Report(true), kReportMicroseconds);
  EXPECT_EQ(samples_, kWorkers * kSlots / kRanks);
  EXPECT_EQ(ranks_ + events_, 0);
  const double quiet = Report(false);
  EXPECT_EQ(samples_ + jobs_ + attempts_ + events_, 0) << "a report that tells nothing writes nothing";
  ExpectCost("quiet_report_microseconds", quiet, kQuietReportMicroseconds);
}

}  // namespace
}  // namespace longspan::testing
