// Turns at set times: when ticks are due, who hears what before and after a commit, and when the core is built again.
// What crashes do to a turn is tests/sim.
#include "server/rpc/durable_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <utility>

#include "tests/server/fakes/store_without_reads.h"

namespace longspan::rpc {
namespace {

using absl::Milliseconds;
using absl::Seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// In memory, with faults; writes into the same list as the callbacks do.
class FaultyStore final : public longspan::testing::StoreWithoutReads {
 public:
  explicit FaultyStore(std::vector<std::string>* happened) : happened_(happened) {}

  absl::StatusOr<core::StoredState> Load() override {
    ++loads;
    if (!fault.ok()) return fault;
    return StoreWithoutReads::Load();
  }
  absl::Status Commit(const core::Transaction& transaction) override {
    happened_->push_back(fault.ok() ? "commit" : "failed commit");
    if (!fault.ok()) return fault;
    return StoreWithoutReads::Commit(transaction);
  }
  absl::StatusOr<int64_t> FreeBytes() const override { return free_bytes; }

  absl::Status fault;
  int64_t free_bytes = std::numeric_limits<int64_t>::max();
  int loads = 0;

 private:
  std::vector<std::string>* const happened_;
};

class PassCounter final : public Observer {
 public:
  void SchedulerPassed(absl::Duration) override { ++passes; }
  int passes = 0;
};

class DurableCoreTest : public ::testing::Test {
 protected:
  DurableCoreTest() : durable_(Settings(), Hooks(), &store_, &observer_) {
    EXPECT_TRUE(durable_.Load().ok());
    durable_.Turn({}, true);
    happened_.clear();
  }

  static DurableCore::Options Settings() {
    DurableCore::Options options;
    options.core.jobs_folder = "/shared/jobs";
    options.free_bytes_min = 1000;
    return options;
  }

  DurableCore::Hooks Hooks() {
    DurableCore::Hooks hooks;
    hooks.now = [this] { return now_ += look_takes_; };
    hooks.on_lost = [this](const absl::Status&) { happened_.push_back("lost"); };
    hooks.on_back = [this] { happened_.push_back("back"); };
    return hooks;
  }

  DurableCore::Item Submit(const std::string& name) {
    core::JobSubmitted submitted;
    submitted.job.id = JobId("job-" + name);
    submitted.job.request_id = "request-" + name;
    submitted.job.name = name;
    submitted.job.queue = "default";
    submitted.job.spec_json = "{}";
    return DurableCore::Sending{submitted, [this, name](absl::StatusOr<core::Reply> reply, const core::Core* core) {
                                  EXPECT_EQ(reply.ok(), core != nullptr);
                                  answer_ = reply.ok() ? std::get<core::SubmitReply>(*reply).status : reply.status();
                                  happened_.push_back(name + (answer_.ok() ? " is told" : " is refused"));
                                }};
  }

  DurableCore::Item Ask(const std::string& name) {
    return DurableCore::QueryCallback([this, name](absl::StatusOr<const core::Core*> core) {
      const bool there = core.ok() && (*core)->ViewJob(JobId("job-" + name)).ok();
      happened_.push_back(!core.ok() ? "no core" : there ? name + " is there" : name + " is not there");
    });
  }

  // One group of one.
  void Take(DurableCore::Item item) {
    std::vector<DurableCore::Item> group;
    group.push_back(std::move(item));
    durable_.Turn(std::move(group), true);
  }

  std::vector<std::string> Happened() { return std::exchange(happened_, {}); }

  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  absl::Duration look_takes_;  // the clock goes on by so much whenever it is read
  std::vector<std::string> happened_;
  absl::Status answer_;
  FaultyStore store_{&happened_};
  PassCounter observer_;
  DurableCore durable_;
};

TEST_F(DurableCoreTest, AfterAPassThereIsNoneForFourTimesAsLong) {
  Take(Submit("a"));
  observer_.passes = 0;
  look_takes_ = Milliseconds(10);
  Take(Submit("b"));
  look_takes_ = absl::ZeroDuration();
  EXPECT_EQ(observer_.passes, 1);
  Take(Submit("c"));
  const absl::Time rest_end = durable_.NextTurn();
  EXPECT_GT(rest_end, now_);
  EXPECT_LT(rest_end, now_ + Milliseconds(500)) << "that is when a tick comes anyway";
  now_ = rest_end - absl::Nanoseconds(1);
  Take(Submit("d"));
  EXPECT_EQ(observer_.passes, 1) << "too early";
  EXPECT_EQ(durable_.NextTurn(), rest_end);
  now_ = rest_end;
  durable_.Turn({}, true);
  EXPECT_EQ(observer_.passes, 2) << "one for both";
}

TEST_F(DurableCoreTest, AGroupIsOneCommitThenItsAnswersThenItsQuestions) {
  std::vector<DurableCore::Item> group;
  group.push_back(Ask("b"));
  group.push_back(Submit("a"));
  group.push_back(Submit("b"));
  const DurableCore::Changed changed = durable_.Turn(std::move(group), true);
  EXPECT_THAT(Happened(), ElementsAre("commit", "a is told", "b is told", "b is there"));
  EXPECT_THAT(changed.jobs, ElementsAre(JobId("job-a"), JobId("job-b")));
  EXPECT_THAT(changed.workers, IsEmpty());
}

TEST_F(DurableCoreTest, AFailedCommitIsNobodysNewsAndTheCoreComesBackWhenTheStoreDoes) {
  store_.fault = absl::ResourceExhaustedError("database or disk is full");
  Take(Submit("a"));
  EXPECT_THAT(Happened(), ElementsAre("failed commit", "lost", "a is refused"));
  EXPECT_TRUE(absl::IsResourceExhausted(answer_));
  EXPECT_EQ(durable_.core(), nullptr);
  EXPECT_EQ(durable_.NextTurn(), now_ + Seconds(1));

  Take(Submit("a"));  // at the same time: nothing is tried
  EXPECT_THAT(Happened(), ElementsAre("a is refused"));
  EXPECT_TRUE(absl::IsUnavailable(answer_));
  EXPECT_THAT(std::string(answer_.message()), HasSubstr("disk is full"));

  now_ += Seconds(1);
  Take(Ask("a"));
  EXPECT_THAT(Happened(), ElementsAre("lost", "no core"));
  EXPECT_EQ(durable_.NextTurn(), now_ + Seconds(1));

  store_.fault = absl::OkStatus();
  now_ += Seconds(1);
  Take(Ask("a"));
  EXPECT_THAT(Happened(), ElementsAre("back", "a is not there"));
  EXPECT_NE(durable_.core(), nullptr);
}

TEST_F(DurableCoreTest, AfterABrokenGuardNothingIsLoadedAgain) {
  store_.fault = absl::InternalError("job-a: another version");
  Take(Submit("a"));
  EXPECT_THAT(Happened(), ElementsAre("failed commit", "lost", "a is refused"));
  EXPECT_EQ(durable_.NextTurn(), absl::InfiniteFuture());
  store_.fault = absl::OkStatus();
  now_ += absl::Hours(1000);
  Take(Submit("a"));
  EXPECT_THAT(Happened(), ElementsAre("a is refused"));
  EXPECT_EQ(store_.loads, 1);
}

TEST_F(DurableCoreTest, ANewJobNeedsRoomOnTheDiskAndAKnownOneDoesNot) {
  Take(Submit("a"));
  store_.free_bytes = 999;
  Take(Submit("b"));
  EXPECT_TRUE(absl::IsResourceExhausted(answer_));
  EXPECT_NE(durable_.core(), nullptr);
  Take(Submit("a"));
  EXPECT_TRUE(answer_.ok());
  store_.free_bytes = 1000;
  Take(Submit("b"));
  EXPECT_TRUE(answer_.ok());
}

// A submit wants a tick: at once when nothing else waits; after `tick` when groups never stop coming.
TEST_F(DurableCoreTest, ATickComesWhenNothingWaitsOrWhenItIsTime) {
  const auto ticks = [this] { return durable_.core()->counters().scheduler_passes; };
  const int64_t before = ticks();
  const absl::Time last_tick = now_;
  EXPECT_EQ(durable_.NextTurn(), last_tick + Milliseconds(500));
  now_ += Milliseconds(100);
  std::vector<DurableCore::Item> group;
  group.push_back(Submit("a"));
  durable_.Turn(std::move(group), /*idle=*/false);
  EXPECT_EQ(ticks(), before);
  EXPECT_EQ(durable_.NextTurn(), absl::InfinitePast());
  now_ = last_tick + Milliseconds(500) - absl::Nanoseconds(1);
  durable_.Turn({}, /*idle=*/false);
  EXPECT_EQ(ticks(), before);
  now_ += absl::Nanoseconds(1);
  durable_.Turn({}, /*idle=*/false);
  EXPECT_EQ(ticks(), before + 1);

  now_ += Milliseconds(100);
  Take(Submit("b"));
  EXPECT_EQ(ticks(), before + 2);
  EXPECT_EQ(durable_.NextTurn(), now_ + Milliseconds(500));
}

}  // namespace
}  // namespace longspan::rpc
