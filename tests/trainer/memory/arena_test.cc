#include "worker/trainer/memory/arena.h"

#include <gtest/gtest.h>

#include "worker/trainer/memory/counting_allocator.h"

namespace longspan::trainer {
namespace {

planner::ArenaLayout TwoThatNeverMeet() {
  return planner::LayOut({{Slot::kNormed, 4096, planner::kForwardAttention},
                          {Slot::kMlpInner, 8192, planner::kForwardMlp},
                          {Slot::kResidual, 1024, planner::kForwardAttention | planner::kForwardMlp}});
}

TEST(Arena, SlotsWhoseStagesDoNotMeetShareMemoryAndOthersDoNot) {
  Arena arena;
  arena.Use(TwoThatNeverMeet());
  EXPECT_EQ(arena.bytes(), 8192 + 1024);
  const at::Tensor normed = arena.Take(Slot::kNormed, {32, 32}, at::kFloat);
  const at::Tensor residual = arena.Take(Slot::kResidual, {256}, at::kFloat).fill_(1);
  const at::Tensor inner = arena.Take(Slot::kMlpInner, {64, 32}, at::kFloat).fill_(2);
  EXPECT_EQ(normed.data_ptr(), inner.data_ptr());
  EXPECT_TRUE(residual.eq(1).all().item<bool>());
}

TEST(Arena, WithoutALayoutEverySlotHasItsOwnMemory) {
  Arena arena;
  const at::Tensor normed = arena.Take(Slot::kNormed, {8}, at::kFloat).fill_(1);
  arena.Take(Slot::kMlpInner, {8}, at::kFloat).fill_(2);
  EXPECT_TRUE(normed.eq(1).all().item<bool>());
}

TEST(Arena, MoreThanThePlanHasIsRefusedByName) {
  Arena arena;
  arena.Use(TwoThatNeverMeet());
  try {
    arena.Take(Slot::kNormed, {1025}, at::kFloat);
    FAIL();
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("the buffer \"normed\" wants 4100 bytes, planned were 4096"),
              std::string::npos);
  }
  EXPECT_THROW(arena.Take(Slot::kLogits, {1}, at::kFloat), c10::Error);
}

TEST(Arena, KeepsItsBlockForSmallerLayouts) {
  InstallCountingAllocator();
  Arena arena;
  arena.Use(TwoThatNeverMeet());
  const int64_t allocations = DeviceMemoryNow().allocations;
  arena.Use(planner::LayOut({{Slot::kNormed, 512, planner::kForwardAttention}}));
  arena.Use(TwoThatNeverMeet());
  EXPECT_EQ(DeviceMemoryNow().allocations, allocations);
  EXPECT_THROW(Arena().Take(Slot::kNormed, {-1}, at::kFloat), c10::Error);
}

}  // namespace
}  // namespace longspan::trainer
