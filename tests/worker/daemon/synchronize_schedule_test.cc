#include "worker/daemon/synchronize_schedule.h"

#include <gtest/gtest.h>

namespace longspan::worker {
namespace {

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);
const absl::Time kNever = absl::InfiniteFuture();

TEST(SynchronizeScheduleTest, CallsAgainWhenTheServerSays) {
  SynchronizeSchedule schedule({});
  EXPECT_LE(schedule.NextCall(kNever, kNever), kStart);
  const int64_t sequence = schedule.OnSent(false, kStart);
  EXPECT_EQ(schedule.NextCall(kNever, kNever), kNever) << "one call is held by the server";
  EXPECT_TRUE(schedule.OnAnswer(sequence, absl::Seconds(3), kStart + absl::Seconds(1)));
  EXPECT_EQ(schedule.NextCall(kNever, kNever), kStart + absl::Seconds(4));
  EXPECT_EQ(schedule.NextCall(kStart + absl::Seconds(2), kNever), kStart + absl::Seconds(2))
      << "a change does not wait";
}

TEST(SynchronizeScheduleTest, AChangeGoesPastAHeldCallAndTheOlderAnswerIsNotActedOn) {
  SynchronizeSchedule schedule({});
  const int64_t first = schedule.OnSent(false, kStart);
  EXPECT_EQ(schedule.NextCall(kStart + absl::Seconds(1), kNever), kStart + absl::Seconds(1));
  const int64_t second = schedule.OnSent(false, kStart + absl::Seconds(1));
  EXPECT_GT(second, first);
  EXPECT_TRUE(schedule.OnAnswer(second, absl::ZeroDuration(), kStart + absl::Seconds(2)));
  EXPECT_FALSE(schedule.OnAnswer(first, absl::ZeroDuration(), kStart + absl::Seconds(3)));
}

TEST(SynchronizeScheduleTest, TheEndOfAnOlderCallIsNoFailure) {
  SynchronizeSchedule schedule({});
  const int64_t first = schedule.OnSent(false, kStart);
  schedule.OnSent(false, kStart + absl::Seconds(1));
  schedule.OnFailure(first, kStart + absl::Seconds(1));
  EXPECT_EQ(schedule.failures(), 0);
  EXPECT_EQ(schedule.NextCall(kNever, kNever), kNever);
}

TEST(SynchronizeScheduleTest, BacksOffWithJitterUpToALimitThatNoChangeShortens) {
  SynchronizeScheduleOptions options;
  SynchronizeSchedule schedule(options);
  absl::Time now = kStart;
  for (int failure = 1; failure <= 40; ++failure) {
    schedule.OnFailure(schedule.OnSent(false, now), now);
    const absl::Time next = schedule.NextCall(now, kNever);
    const absl::Duration nominal =
        std::min(options.backoff_max, options.backoff_min * static_cast<double>(1LL << std::min(failure - 1, 30)));
    EXPECT_GE(next - now, nominal / 2);
    EXPECT_LE(next - now, nominal);
    now = next;
  }
  EXPECT_EQ(schedule.failures(), 40);
  EXPECT_TRUE(schedule.OnAnswer(schedule.OnSent(false, now), absl::ZeroDuration(), now));
  EXPECT_EQ(schedule.failures(), 0);
}

TEST(SynchronizeScheduleTest, ProgressWaitsForTheAnswerToNewsAndAChangeDoesNot) {
  SynchronizeSchedule schedule({});
  schedule.OnSent(false, kStart);
  const absl::Time due = kStart + absl::Seconds(1);
  EXPECT_EQ(schedule.NextCall(kNever, due), due) << "past a call that is held";
  const int64_t news = schedule.OnSent(true, due);
  EXPECT_EQ(schedule.NextCall(kNever, due), kNever);
  const absl::Time change = due + absl::Seconds(1);
  EXPECT_EQ(schedule.NextCall(change, due), change);
  const int64_t exit = schedule.OnSent(true, change);
  EXPECT_TRUE(schedule.OnAnswer(news, absl::ZeroDuration(), change));
  EXPECT_EQ(schedule.NextCall(kNever, due), kNever) << "the newer one brings news too";
  schedule.OnFailure(exit, change);
  EXPECT_LT(schedule.NextCall(kNever, due), kNever) << "a lost answer holds nothing up";
}

TEST(SynchronizeScheduleTest, BurstsOfChangesAreOneCallAndCallsInFlightAreBounded) {
  SynchronizeScheduleOptions options;
  SynchronizeSchedule schedule(options);
  schedule.OnSent(false, kStart);
  EXPECT_EQ(schedule.NextCall(kStart, kNever), kStart + options.spacing_min);
  for (int64_t i = 1; i < options.calls_in_flight_max; ++i) schedule.OnSent(false, kStart);
  EXPECT_EQ(schedule.NextCall(kStart, kNever), kNever);
}

}  // namespace
}  // namespace longspan::worker
