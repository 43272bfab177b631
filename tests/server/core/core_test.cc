#include "server/core/core.h"

#include <gtest/gtest.h>

#include "tests/server/fakes/fake_worker.h"
#include "tests/server/fakes/memory_store.h"

namespace longspan::core {
namespace {

using ::longspan::testing::FakeWorker;
using ::longspan::testing::MemoryStore;

class CoreTest : public ::testing::Test {
 protected:
  CoreTest() { Step(Restarted{}); }

  Effects Step(const Event& event) {
    Effects effects = core_.Step(event, now_);
    store_.Commit(effects.transaction);
    return effects;
  }
  void Submit(const std::string& name) {
    Job job;
    job.id = JobId("job-" + name);
    job.name = name;
    job.request_id = "request-" + name;
    Step(JobSubmitted{job});
  }
  // A report and what the worker does about the answer; then the scheduler.
  ReportReply Sync(FakeWorker& worker) {
    const ReportReply reply = std::get<ReportReply>(Step(worker.MakeReport(now_)).reply);
    worker.Apply(reply, core_.Desired(worker.id()), now_);
    Step(Tick{});
    return reply;
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  MemoryStore store_;
  Core core_{CoreOptions{.jobs_folder = "/jobs"}};
};

TEST_F(CoreTest, ListsNewestFirstInPages) {
  for (const char* name : {"a", "b", "c", "d"}) Submit(name);
  const auto all = [](const Job&) { return true; };
  std::vector<JobView> page = core_.ListJobs(JobId(), 3, all);
  ASSERT_EQ(page.size(), 3u);
  EXPECT_EQ(page[0].job.name, "d");
  EXPECT_EQ(page[2].job.name, "b");
  page = core_.ListJobs(page[2].job.id, 3, all);
  ASSERT_EQ(page.size(), 1u);
  EXPECT_EQ(page[0].job.name, "a");
  EXPECT_EQ(core_.ListJobs(JobId(), 9, [](const Job& job) { return job.name == "c"; }).size(), 1u);
}

TEST_F(CoreTest, ResolvesIdsAndUniqueNames) {
  Submit("a");
  EXPECT_EQ(*core_.ResolveJob("job-a"), JobId("job-a"));
  EXPECT_EQ(*core_.ResolveJob("a"), JobId("job-a"));
  EXPECT_EQ(core_.ResolveJob("b").status().code(), absl::StatusCode::kNotFound);
  Job twin;
  twin.id = JobId("job-twin");
  twin.name = "a";
  twin.request_id = "request-twin";
  Step(JobSubmitted{twin});
  EXPECT_EQ(core_.ResolveJob("a").status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CoreTest, AnArtifactsExcerptIsKeptBoundedAndReplaced) {
  FakeWorker worker(WorkerId("w"), 1);
  Sync(worker);
  Submit("a");
  Step(Tick{});
  Sync(worker);
  const FakeWorker::Key key(JobId("job-a"), 1, 0);
  const auto report = [&](const std::string& excerpt) {
    worker.ranks().at(key).report.artifacts = {{"dataset", "/d", excerpt}};
    now_ += absl::Seconds(1);
    return Step(worker.MakeReport(now_)).transaction.artifacts.size();
  };
  const auto kept = [&] { return core_.ViewJob(JobId("job-a"))->artifacts.at(0).excerpt; };
  EXPECT_EQ(report("prompt | a\n"), 1u);
  EXPECT_EQ(report("prompt | a\n"), 0u) << "said again";
  EXPECT_EQ(report("prompt | b\n"), 1u) << "the same path, another excerpt";
  EXPECT_EQ(kept(), "prompt | b\n");
  const std::string too_long = std::string(8191, 'x') + "\u00e4 and more";
  EXPECT_EQ(report(too_long), 1u);
  EXPECT_EQ(kept(), std::string(8191, 'x') + "...") << "never cut inside a character";
  EXPECT_EQ(report(too_long), 0u) << "no commit for every report of it";
}

TEST_F(CoreTest, AnAcknowledgedSampleIsStoredOnce) {
  FakeWorker worker(WorkerId("w"), 1);
  Sync(worker);
  Submit("a");
  Step(Tick{});
  Sync(worker);
  const FakeWorker::Key key(JobId("job-a"), 1, 0);
  worker.AddSample(key, Phase::kPrepare, 1, now_);
  worker.AddSample(key, Phase::kPrepare, 2, now_);
  const WorkerReport lost_answer = worker.MakeReport(now_);
  EXPECT_EQ(std::get<ReportReply>(Step(lost_answer).reply).acknowledged.at(0).sample_sequence, 2);
  worker.AddSample(key, Phase::kPrepare, 3, now_);
  EXPECT_EQ(Sync(worker).acknowledged.at(0).sample_sequence, 3);
  ASSERT_EQ(store_.Samples(JobId("job-a")).size(), 3u);
  EXPECT_TRUE(worker.ranks().at(key).report.samples.empty());
}

TEST_F(CoreTest, RefusesReportsThatCannotBe) {
  FakeWorker worker(WorkerId("w"), 1);
  WorkerReport report = worker.MakeReport(now_);
  report.slots.push_back(report.slots[0]);
  EXPECT_EQ(std::get<ReportReply>(Step(report).reply).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(core_.ListWorkers().empty());
  report = worker.MakeReport(now_);
  report.ranks.emplace_back().phase = static_cast<Phase>(99);
  EXPECT_EQ(std::get<ReportReply>(Step(report).reply).status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CoreTest, RefusesAnOlderReportOfTheSameProcess) {
  FakeWorker worker(WorkerId("w"), 1);
  const WorkerReport first = worker.MakeReport(now_);
  Step(worker.MakeReport(now_));
  const Effects effects = Step(first);
  EXPECT_EQ(std::get<ReportReply>(effects.reply).status.code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(effects.transaction.empty());
}

TEST_F(CoreTest, TheProcessBeforeIsRefusedForEver) {
  FakeWorker worker(WorkerId("w"), 1);
  const WorkerReport before = worker.MakeReport(now_);
  Step(before);
  worker.Restart();
  EXPECT_FALSE(Sync(worker).greeting.empty());
  EXPECT_TRUE(Sync(worker).greeting.empty());
  WorkerReport late = before;
  late.sequence = 99;
  EXPECT_EQ(std::get<ReportReply>(Step(late).reply).status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CoreTest, AQuietReportStoresNothing) {
  FakeWorker worker(WorkerId("w"), 1);
  Sync(worker);
  EXPECT_TRUE(Step(worker.MakeReport(now_)).transaction.empty());
}

TEST_F(CoreTest, TheFingerprintTellsAPlacementThatWasTakenBack) {
  FakeWorker worker(WorkerId("w"), 1);
  Sync(worker);
  const std::string before = core_.Desired(worker.id()).fingerprint;
  Submit("a");
  Step(Tick{});
  ASSERT_EQ(core_.Desired(worker.id()).ranks.size(), 1u);
  Step(CancelRequested{JobId("job-a")});
  ASSERT_TRUE(core_.Desired(worker.id()).ranks.empty());
  EXPECT_NE(core_.Desired(worker.id()).fingerprint, before);
  // The worker still acts on what it knew before; the rank may be on its way, so the job is not over.
  Step(worker.MakeReport(now_));
  EXPECT_EQ(core_.ViewJob(JobId("job-a"))->job.state, JobState::kCancelling);
  Sync(worker);
  Sync(worker);
  EXPECT_EQ(core_.ViewJob(JobId("job-a"))->job.state, JobState::kCancelled);
}

TEST(CoreDeathTest, LeasesMustBeSafe) {
  CoreOptions options;
  options.slot_reuse_after = options.lease;
  EXPECT_DEATH(Core{options}, "slots may be reused only after");
}

}  // namespace
}  // namespace longspan::core
