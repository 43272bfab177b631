#include "server/rpc/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "tests/server/fakes/store_without_reads.h"

namespace longspan::rpc {
namespace {

using ::testing::HasSubstr;

// The store in memory behind the interface, with faults and a gate.
class FaultyStore final : public longspan::testing::StoreWithoutReads {
 public:
  absl::Status Commit(const core::Transaction& transaction) override {
    const MutexLock lock(mutex_);
    while (closed_) changed_.Wait(mutex_);
    ++commits_;
    if (!fault_.ok()) return fault_;
    return StoreWithoutReads::Commit(transaction);
  }

  absl::StatusOr<int64_t> FreeBytes() const override { return free_bytes_; }

  void SetFreeBytes(int64_t free_bytes) { free_bytes_ = free_bytes; }
  void SetFault(absl::Status fault) {
    const MutexLock lock(mutex_);
    fault_ = std::move(fault);
  }
  // Commits wait while the gate is closed.
  void SetGate(bool closed) {
    {
      const MutexLock lock(mutex_);
      closed_ = closed;
    }
    changed_.NotifyAll();
  }
  int commits() {
    const MutexLock lock(mutex_);
    return commits_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  absl::Status fault_ GUARDED_BY(mutex_);
  std::atomic<int64_t> free_bytes_ = std::numeric_limits<int64_t>::max();
  bool closed_ GUARDED_BY(mutex_) = false;
  int commits_ GUARDED_BY(mutex_) = 0;
};

core::JobSubmitted Submission(const std::string& name) {
  core::JobSubmitted submitted;
  submitted.job.id = JobId("job-" + name);
  submitted.job.request_id = "request-" + name;
  submitted.job.name = name;
  submitted.job.queue = "default";
  submitted.job.spec_json = "{}";
  return submitted;
}

std::future<absl::Status> Submit(Coordinator* coordinator, const std::string& name) {
  auto promise = std::make_shared<std::promise<absl::Status>>();
  std::future<absl::Status> answer = promise->get_future();
  coordinator->Send(Submission(name), [promise](absl::StatusOr<core::Reply> reply, const core::Core*) {
    promise->set_value(reply.ok() ? std::get<core::SubmitReply>(*reply).status : reply.status());
  });
  return answer;
}

absl::StatusOr<bool> Knows(Coordinator* coordinator, const std::string& name) {
  std::promise<absl::StatusOr<bool>> promise;
  coordinator->Query([&](absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return promise.set_value(core.status());
    promise.set_value((*core)->ViewJob(JobId("job-" + name)).ok());
  });
  return promise.get_future().get();
}

// Until the store works again, with a bound that only a failing test reaches.
bool KnowsAfterRecovery(Coordinator* coordinator, const std::string& name) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (std::chrono::steady_clock::now() < deadline) {
    if (const absl::StatusOr<bool> knows = Knows(coordinator, name); knows.ok()) return *knows;
  }
  return false;
}

struct Fixture {
  explicit Fixture(const std::function<void(Coordinator::Options*)>& adjust = {}) {
    Coordinator::Options options;
    options.core.jobs_folder = "/shared/jobs";
    options.reload_after = absl::Milliseconds(10);
    if (adjust) adjust(&options);
    coordinator = std::make_unique<Coordinator>(options, &store, &observer);
    EXPECT_TRUE(coordinator->Start().ok());
  }
  FaultyStore store;
  Observer observer;
  std::unique_ptr<Coordinator> coordinator;
};

TEST(Coordinator, AnAnswerComesAfterItsCommit) {
  Fixture fixture;
  fixture.store.SetGate(true);
  std::future<absl::Status> answer = Submit(fixture.coordinator.get(), "a");
  EXPECT_EQ(answer.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  fixture.store.SetGate(false);
  EXPECT_TRUE(answer.get().ok());
}

TEST(Coordinator, EventsThatWaitTogetherAreOneTransaction) {
  Fixture fixture;
  fixture.store.SetGate(true);
  std::vector<std::future<absl::Status>> answers;
  answers.reserve(100);
  for (int i = 0; i < 100; ++i) answers.push_back(Submit(fixture.coordinator.get(), std::to_string(i)));
  fixture.store.SetGate(false);
  for (auto& answer : answers) EXPECT_TRUE(answer.get().ok());
  EXPECT_LT(fixture.store.commits(), 20);
}

TEST(Coordinator, AFullDiskIsAnErrorOfTheCallerAndNothingHasHappened) {
  Fixture fixture;
  ASSERT_TRUE(Submit(fixture.coordinator.get(), "before").get().ok());
  fixture.store.SetFault(absl::ResourceExhaustedError("/data/longspan.db: database or disk is full"));
  const absl::Status failed = Submit(fixture.coordinator.get(), "during").get();
  EXPECT_TRUE(absl::IsResourceExhausted(failed)) << failed;
  EXPECT_THAT(std::string(failed.message()), HasSubstr("disk is full"));
  fixture.store.SetFault(absl::OkStatus());
  EXPECT_TRUE(KnowsAfterRecovery(fixture.coordinator.get(), "before"));
  EXPECT_FALSE(*Knows(fixture.coordinator.get(), "during"));
  EXPECT_TRUE(Submit(fixture.coordinator.get(), "during").get().ok());
}

TEST(Coordinator, ABrokenGuardIsFatal) {
  std::promise<absl::Status> fatal;
  Fixture fixture([&](Coordinator::Options* options) {
    options->on_fatal = [&](const absl::Status& cause) { fatal.set_value(cause); };
  });
  fixture.store.SetFault(absl::InternalError("job-x: another version"));
  EXPECT_FALSE(Submit(fixture.coordinator.get(), "a").get().ok());
  EXPECT_TRUE(absl::IsInternal(fatal.get_future().get()));
  EXPECT_TRUE(absl::IsUnavailable(Submit(fixture.coordinator.get(), "b").get()));
}

TEST(Coordinator, AFullQueueRefuses) {
  Fixture fixture([](Coordinator::Options* options) { options->queued_max = 4; });
  fixture.store.SetGate(true);
  std::vector<std::future<absl::Status>> answers;
  bool refused = false;
  for (int i = 0; i < 20 && !refused; ++i) {
    answers.push_back(Submit(fixture.coordinator.get(), std::to_string(i)));
    refused = answers.back().wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }
  EXPECT_TRUE(refused);
  EXPECT_TRUE(absl::IsResourceExhausted(answers.back().get()));
  answers.pop_back();
  fixture.store.SetGate(false);
  for (auto& answer : answers) EXPECT_TRUE(answer.get().ok());
}

TEST(Coordinator, StoppingAnswersWhatWaitsAndRefusesTheRest) {
  Fixture fixture;
  fixture.store.SetGate(true);
  std::future<absl::Status> waiting = Submit(fixture.coordinator.get(), "a");
  std::thread opener([&] { fixture.store.SetGate(false); });
  fixture.coordinator->Stop();
  opener.join();
  EXPECT_TRUE(waiting.get().ok());
  EXPECT_TRUE(absl::IsUnavailable(Submit(fixture.coordinator.get(), "b").get()));
}

TEST(Coordinator, ATimerRunsInTime) {
  Fixture fixture;
  std::promise<void> ran;
  fixture.coordinator->RunAt(Coordinator::Clock::now() + std::chrono::milliseconds(20), [&] { ran.set_value(); });
  EXPECT_EQ(ran.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
}

// The rest of the disk is for what runs: reports are stored, new jobs are not; a retry of a known one is answered.
TEST(CoordinatorTest, ADiskThatIsNearlyFullTakesNoNewJobs) {
  Fixture fixture([](Coordinator::Options* options) { options->free_bytes_min = 1000; });
  ASSERT_TRUE(Submit(fixture.coordinator.get(), "early").get().ok());
  fixture.store.SetFreeBytes(999);
  const absl::Status refused = Submit(fixture.coordinator.get(), "late").get();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_TRUE(Submit(fixture.coordinator.get(), "early").get().ok());
  EXPECT_FALSE(*Knows(fixture.coordinator.get(), "late"));

  core::WorkerReport report;
  report.worker_id = WorkerId("w");
  report.incarnation_id = "w-1";
  report.sequence = 1;
  std::promise<absl::Status> reported;
  fixture.coordinator->Send(report, [&](absl::StatusOr<core::Reply> reply, const core::Core*) {
    reported.set_value(reply.ok() ? std::get<core::ReportReply>(*reply).status : reply.status());
  });
  EXPECT_TRUE(reported.get_future().get().ok());

  fixture.store.SetFreeBytes(1000);
  EXPECT_TRUE(Submit(fixture.coordinator.get(), "late").get().ok());
}

}  // namespace
}  // namespace longspan::rpc
