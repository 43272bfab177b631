// Entries that leave the device and come back, under copies that are done late: what is read is what was written, for
// any number of entries in host memory, and nothing is copied that needs no copy.
#include "worker/trainer/memory/kept_values.h"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>

#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

// Copies only when somebody waits, and then only as many as must be: the latest that a real stream could be.
class LateStream : public CopyStream {
 public:
  explicit LateStream(int64_t* waits) : waits_(waits) {}
  Ticket Copy(std::byte* to, const std::byte* from, int64_t bytes) override {
    copied_bytes_ += bytes;
    queue_.push_back({to, from, bytes});
    return ++asked_;
  }
  void Finish() override { Wait(asked_); }
  void Wait(Ticket ticket) override {
    if (done_ < ticket) ++*waits_;
    for (; done_ < ticket; ++done_) {
      std::memcpy(queue_.front().to, queue_.front().from, static_cast<size_t>(queue_.front().bytes));
      queue_.pop_front();
    }
  }

 private:
  struct Request {
    std::byte* to;
    const std::byte* from;
    int64_t bytes;
  };
  int64_t* waits_;
  std::deque<Request> queue_;
  Ticket asked_ = 0, done_ = 0;
};

planner::StepShape Shape(int64_t layers) {
  planner::StepShape shape;
  shape.rows = 5;
  shape.num_hidden_layers = layers;
  shape.hidden_size = 6;
  shape.intermediate_size = 7;
  shape.query_heads = 3;
  shape.key_value_heads = 1;
  shape.head_dim = 2;
  return shape;
}

at::Tensor Value(int64_t entry, int64_t part) { return at::full({5, 6}, static_cast<double>(100 * entry + part)); }

void WriteForwardReadBackward(KeptValues& kept, const planner::KeptPlan& plan) {
  for (int64_t entry = 0; entry < plan.long_lived; ++entry) {
    for (const KeptPart part : {KeptPart::kInput, KeptPart::kAttentionOutput}) {
      kept.Open(entry, part, {5, 6}, at::kFloat).copy_(Value(entry, static_cast<int64_t>(part)));
      kept.Close(entry, part);
    }
  }
  for (int64_t entry = plan.long_lived - 1; entry >= 0; --entry) {
    for (const KeptPart part : {KeptPart::kInput, KeptPart::kAttentionOutput}) {
      EXPECT_TRUE(at::equal(kept.Read(entry, part, {5, 6}, at::kFloat), Value(entry, static_cast<int64_t>(part))))
          << "entry " << entry << " of " << plan.long_lived << ", " << plan.host << " on the host";
    }
    kept.Done(entry);
  }
}

TEST(KeptValues, WhatIsReadIsWhatWasWrittenHoweverLateTheCopiesAre) {
  for (int64_t layers = 1; layers <= 7; ++layers) {
    for (int64_t host = 0; host <= layers + 1; ++host) {
      planner::MemoryPolicy policy;
      policy.keep = planner::KeepPolicy::kAttentionOutput;
      policy.host_layers = host;
      const planner::KeptPlan plan = planner::PlanKeptValues(Shape(layers), policy);
      int64_t waits = 0;
      KeptValues kept(std::make_unique<LateStream>(&waits));
      for (int pass = 0; pass < 3; ++pass) {
        kept.Begin(plan);
        WriteForwardReadBackward(kept, plan);
        // The logsumexp was never closed here, but it comes back with the rest.
        const int64_t written = plan.host * (plan.long_lived_bytes.parts[0] + plan.long_lived_bytes.parts[1]);
        EXPECT_EQ(kept.copied_bytes(), (pass + 1) * (written + plan.host * plan.long_lived_bytes.total()));
      }
      EXPECT_EQ(kept.host_bytes(), planner::KeptValuesOf(plan).host_bytes);
      EXPECT_EQ(kept.device_bytes(), planner::KeptValuesOf(plan).device_bytes);
    }
  }
}

TEST(KeptValues, ARealThreadGivesTheSame) {
  planner::MemoryPolicy policy;
  policy.host_layers = 9;
  const planner::KeptPlan plan = planner::PlanKeptValues(Shape(11), policy);
  KeptValues kept(CopyStream::OnThread());
  for (int pass = 0; pass < 20; ++pass) {
    kept.Begin(plan);
    WriteForwardReadBackward(kept, plan);
  }
}

TEST(KeptValues, APassThatIsLeftInTheMiddleDoesNotHarmTheNext) {
  planner::MemoryPolicy policy;
  policy.host_layers = 4;
  const planner::KeptPlan plan = planner::PlanKeptValues(Shape(6), policy);
  int64_t waits = 0;
  KeptValues kept(std::make_unique<LateStream>(&waits));
  kept.Begin(plan);
  for (int64_t entry = 0; entry < 3; ++entry) {
    kept.Open(entry, KeptPart::kInput, {5, 6}, at::kFloat).fill_(7);
    kept.Close(entry, KeptPart::kInput);
  }
  kept.Begin(plan);
  WriteForwardReadBackward(kept, plan);
}

TEST(KeptValues, NothingWaitsWhereNothingIsOnTheHost) {
  const planner::KeptPlan plan = planner::PlanKeptValues(Shape(5), {});
  int64_t waits = 0;
  KeptValues kept(std::make_unique<LateStream>(&waits));
  kept.Begin(plan);
  WriteForwardReadBackward(kept, plan);
  EXPECT_EQ(waits, 0);
  EXPECT_EQ(kept.copied_bytes(), 0);
}

TEST(KeptValues, EntriesOfASegmentDoNotOverlap) {
  planner::MemoryPolicy policy;
  policy.checkpoint_every = 3;
  const planner::KeptPlan plan = planner::PlanKeptValues(Shape(7), policy);
  KeptValues kept(CopyStream::OnThread());
  kept.Begin(plan);
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (const KeptPart part : {KeptPart::kInput, KeptPart::kAttentionOutput}) {
      if (layer == 0 && part == KeptPart::kInput) continue;
      kept.OfSegment(layer, part, {5, 6}, at::kFloat).copy_(Value(layer, static_cast<int64_t>(part)));
    }
  }
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (const KeptPart part : {KeptPart::kInput, KeptPart::kAttentionOutput}) {
      if (layer == 0 && part == KeptPart::kInput) continue;
      EXPECT_TRUE(at::equal(kept.OfSegment(layer, part, {5, 6}, at::kFloat), Value(layer, static_cast<int64_t>(part))));
    }
  }
  EXPECT_THROW(kept.OfSegment(0, KeptPart::kInput, {5, 6}, at::kFloat), c10::Error);
}

TEST(HostBlock, MoreThanTheMachineHasIsAResourceError) {
  HostBlock block;
  EXPECT_THROW(block.Reserve(int64_t{1} << 60), ResourceError);
  block.Reserve(4096);
  block.data()[4095] = std::byte{1};
  EXPECT_EQ(block.bytes(), 4096);
}

}  // namespace
}  // namespace longspan::trainer
