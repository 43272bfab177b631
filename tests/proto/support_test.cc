// The smallest targets: identifiers, CHECK, the mutex.
#include <gtest/gtest.h>

#include <thread>
#include <unordered_set>

#include "proto/support/check.h"
#include "proto/support/ids.h"
#include "proto/support/mutex.h"

namespace longspan {
namespace {

static_assert(!std::is_convertible_v<JobId, WorkerId>);
static_assert(!std::is_convertible_v<std::string, JobId>);
static_assert(!std::is_convertible_v<int, AttemptNumber>);

TEST(Ids, AreOrderedHashedAndPrinted) {
  EXPECT_LT(JobId("a"), JobId("b"));
  EXPECT_EQ((std::unordered_set<JobId>{JobId("a"), JobId("a"), JobId("b")}.size()), 2u);
  EXPECT_EQ(fmt::format("{:>4}/{}", JobId("j"), AttemptNumber(2).Next()), "   j/3");
  EXPECT_TRUE(JobId().empty());
}

TEST(CheckDeathTest, SaysWhereAndWhat) {
  const int three = 3;
  CHECK(three == 3) << "not evaluated";
  CHECK_EQ(three, 3);
  EXPECT_DEATH(CHECK(three == 4) << "three is " << three,
               "support_test.cc:[0-9]+: CHECK failed: three == 4 three is 3");
  EXPECT_DEATH(CHECK_LT(three, 3) << "too large", "CHECK failed: three < 3 \\(3 vs. 3\\) too large");
}

TEST(Check, EvaluatesEachOperandOnce) {
  int calls = 0;
  CHECK_GE(++calls, 1);
  if (calls == 1) CHECK_EQ(calls, 1);
  EXPECT_EQ(calls, 1);
}

TEST(Mutex, WaitsForACondition) {
  Mutex mutex;
  CondVar changed;
  bool ready = false;
  std::thread other([&] {
    MutexLock lock(mutex);
    ready = true;
    changed.NotifyAll();
  });
  {
    MutexLock lock(mutex);
    while (!ready) changed.Wait(mutex);
  }
  other.join();
  MutexLock lock(mutex);
  EXPECT_FALSE(changed.WaitFor(mutex, std::chrono::milliseconds(1)));
}

}  // namespace
}  // namespace longspan
