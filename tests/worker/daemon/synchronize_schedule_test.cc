#include "worker/daemon/synchronize_schedule.h"

#include <gtest/gtest.h>

namespace longspan::worker {
namespace {

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);
const absl::Time kNever = absl::InfiniteFuture();

TEST(SynchronizeScheduleTest, CallsAgainWhenTheServerSays) {
  SynchronizeSchedule schedule({});
  EXPECT_LE(schedule.NextCall(kNever), kStart);
  const int64_t sequence = schedule.OnSent(kStart);
  EXPECT_EQ(schedule.NextCall(kNever), kNever) << "one call is held by the server";
  EXPECT_TRUE(schedule.OnAnswer(sequence, absl::Seconds(3), kStart + absl::Seconds(1)));
  EXPECT_EQ(schedule.NextCall(kNever), kStart + absl::Seconds(4));
  EXPECT_EQ(schedule.NextCall(kStart + absl::Seconds(2)), kStart + absl::Seconds(2)) << "a change does not wait";
}

TEST(SynchronizeScheduleTest, AChangeGoesPastAHeldCallAndTheOlderAnswerIsNotActedOn) {
  SynchronizeSchedule schedule({});
  const int64_t first = schedule.OnSent(kStart);
  EXPECT_EQ(schedule.NextCall(kStart + absl::Seconds(1)), kStart + absl::Seconds(1));
  const int64_t second = schedule.OnSent(kStart + absl::Seconds(1));
  EXPECT_GT(second, first);
  EXPECT_TRUE(schedule.OnAnswer(second, absl::ZeroDuration(), kStart + absl::Seconds(2)));
  EXPECT_FALSE(schedule.OnAnswer(first, absl::ZeroDuration(), kStart + absl::Seconds(3)));
}

TEST(SynchronizeScheduleTest, TheEndOfAnOlderCallIsNoFailure) {
  SynchronizeSchedule schedule({});
  const int64_t first = schedule.OnSent(kStart);
  schedule.OnSent(kStart + absl::Seconds(1));
  schedule.OnFailure(first, kStart + absl::Seconds(1));
  EXPECT_EQ(schedule.failures(), 0);
  EXPECT_EQ(schedule.NextCall(kNever), kNever);
}

TEST(SynchronizeScheduleTest, BacksOffWithJitterUpToALimitThatNoChangeShortens) {
  SynchronizeScheduleOptions options;
  SynchronizeSchedule schedule(options);
  absl::Time now = kStart;
  for (int failure = 1; failure <= 40; ++failure) {
    schedule.OnFailure(schedule.OnSent(now), now);
    const absl::Time next = schedule.NextCall(now);
    const absl::Duration nominal =
        std::min(options.backoff_max, options.backoff_min * static_cast<double>(1LL << std::min(failure - 1, 30)));
    EXPECT_GE(next - now, nominal / 2);
    EXPECT_LE(next - now, nominal);
    now = next;
  }
  EXPECT_EQ(schedule.failures(), 40);
  EXPECT_TRUE(schedule.OnAnswer(schedule.OnSent(now), absl::ZeroDuration(), now));
  EXPECT_EQ(schedule.failures(), 0);
}

TEST(SynchronizeScheduleTest, BurstsOfChangesAreOneCallAndCallsInFlightAreBounded) {
  SynchronizeScheduleOptions options;
  SynchronizeSchedule schedule(options);
  schedule.OnSent(kStart);
  EXPECT_EQ(schedule.NextCall(kStart), kStart + options.spacing_min);
  for (int64_t i = 1; i < options.calls_in_flight_max; ++i) schedule.OnSent(kStart);
  EXPECT_EQ(schedule.NextCall(kStart), kNever);
}

}  // namespace
}  // namespace longspan::worker
