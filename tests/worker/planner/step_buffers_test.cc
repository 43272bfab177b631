// The arena and the kept values: that no two buffers meet, and that sizes are those of memory_policy.h.
#include "worker/planner/step_buffers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "worker/planner/kept_values.h"

namespace longspan::planner {
namespace {

constexpr KeepPolicy kPolicies[] = {KeepPolicy::kInput, KeepPolicy::kAttentionOutput, KeepPolicy::kQueryKeyValue,
                                    KeepPolicy::kResidual, KeepPolicy::kGateUp};

StepShape ShapeOf(int64_t rows, int64_t element_bytes, unsigned switches) {
  StepShape shape;
  shape.rows = rows;
  shape.element_bytes = element_bytes;
  shape.num_hidden_layers = 7;
  shape.hidden_size = 48;
  shape.intermediate_size = 100;
  shape.vocab_size = 333;
  shape.query_heads = 6;
  shape.key_value_heads = 2;
  shape.head_dim = 8;
  shape.has_gate = (switches & 1) == 0;
  shape.parallel_residual = (switches & 2) != 0;
  shape.has_head_norms = (switches & 4) != 0;
  shape.dropout = (switches & 8) != 0;
  shape.trains_weights = (switches & 16) != 0;
  shape.trains_norms = shape.trains_head = (switches & 32) != 0;
  shape.attention_scratch_bytes = (switches & 64) != 0 ? 1000 : 0;
  const bool scratch = (switches & 128) != 0;
  shape.halo_rows = (switches & 3) == 1 ? (rows + 1) / 2 : 0;
  shape.ring_rows = (switches & 3) == 2 ? rows + 1 : 0;
  shape.query_key_value = {48, shape.query_key_value_size(), 24, scratch};
  shape.output = {shape.query_size(), 48, 8, scratch};
  shape.mlp_in = {48, shape.mlp_in_size(), 0, false};
  shape.mlp_out = {100, 48, 0, false};
  return shape;
}

template <class Check>
void ForEachShapeAndPolicy(const Check& check) {
  for (const int64_t rows : {1, 63, 64, 257}) {
    for (const int64_t element_bytes : {2, 4}) {
      for (unsigned switches = 0; switches < 256; switches += 5) {  // 5 is odd: every switch is on and off
        const StepShape shape = ShapeOf(rows, element_bytes, switches);
        for (const KeepPolicy keep : kPolicies) {
          for (const int64_t every : {1, 2, 7}) {
            for (const int64_t tile : {16, 64}) {
              for (const int64_t heads : {0, 1}) check(shape, MemoryPolicy{keep, every, 0, tile, 2 * tile, heads});
            }
          }
        }
      }
    }
  }
}

TEST(Arena, BuffersThatMeetInAStageDoNotOverlap) {
  ForEachShapeAndPolicy([](const StepShape& shape, const MemoryPolicy& policy) {
    const std::vector<Buffer> buffers = TrainingBuffers(shape, policy);
    const ArenaLayout layout = LayOut(buffers);
    for (size_t i = 0; i < buffers.size(); ++i) {
      const ArenaLayout::Place& a = layout.places[static_cast<int>(buffers[i].slot)];
      ASSERT_GE(a.bytes, buffers[i].bytes);
      ASSERT_EQ(a.offset % kArenaAlignment, 0);
      ASSERT_LE(a.offset + a.bytes, layout.bytes);
      for (size_t j = 0; j < i; ++j) {
        ASSERT_NE(buffers[i].slot, buffers[j].slot) << NameOf(buffers[i].slot) << " is listed twice";
        if ((buffers[i].stages & buffers[j].stages) == 0) continue;
        const ArenaLayout::Place& b = layout.places[static_cast<int>(buffers[j].slot)];
        ASSERT_TRUE(a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset)
            << NameOf(buffers[i].slot) << " and " << NameOf(buffers[j].slot);
      }
    }
  });
}

TEST(Arena, IsAsLargeAsTheFullestStageAndNotMuchLarger) {
  double worst = 0;
  ForEachShapeAndPolicy([&](const StepShape& shape, const MemoryPolicy& policy) {
    const std::vector<Buffer> buffers = TrainingBuffers(shape, policy);
    int64_t fullest = 0;
    for (int bit = 0; bit < 32; ++bit) {
      int64_t stage = 0;
      for (const Buffer& buffer : buffers) {
        if ((buffer.stages >> bit & 1) != 0) stage += buffer.bytes;
      }
      fullest = std::max(fullest, stage);
    }
    const int64_t arena = LayOut(buffers).bytes;
    ASSERT_GE(arena, fullest);
    // Rounding up to the alignment is most of it where there is one row.
    if (shape.rows > 60) worst = std::max(worst, static_cast<double>(arena) / static_cast<double>(fullest));
  });
  EXPECT_LT(worst, 1.2);
  RecordProperty("worst", std::to_string(worst));
}

// The table of memory_policy.h, in values of a token and layer.
// The gradients of a part of a fused layer are fewer columns in more parts.
TEST(LoraSums, HaveRoomForTheirPartsAndForThoseOfFewerColumns) {
  for (const int64_t kept : {1, 127, 128, 129, 1000, 4096, 12288, 67584, 67585, 300000}) {
    for (const int64_t summed : {1, 255, 256, 257, 4096, 22016, 1000000}) {
      const int64_t room = LoraSumElements(24, kept, summed);
      for (const int64_t fewer : {kept, kept - 1, kept / 3, kept / 10, int64_t{100}}) {
        if (fewer < 1 || fewer > kept) continue;
        const int64_t parts = LoraSumParts(fewer, summed);
        EXPECT_GE(parts, 1);
        EXPECT_LE(parts, (summed + 255) / 256) << "none without a sum worth it";
        EXPECT_LE(24 * parts * fewer, room) << fewer << " of " << kept << ", summed " << summed;
      }
    }
  }
  EXPECT_EQ(LoraSumParts(1024, 4096), 16) << "8 tiles of results alone would leave a GPU idle";
  EXPECT_EQ(LoraSumParts(4096, 8192), 16);
}

TEST(LoraSums, TakeThePlaceOfBf16GradientsOnAGpu) {
  const auto has = [](const StepShape& shape, Slot slot) {
    const std::vector<Buffer> buffers = TrainingBuffers(shape, MemoryPolicy{});
    return std::any_of(buffers.begin(), buffers.end(), [slot](const Buffer& buffer) { return buffer.slot == slot; });
  };
  StepShape shape = ShapeOf(257, 2, 0);
  EXPECT_FALSE(has(shape, Slot::kLoraSums));
  shape.on_gpu = true;
  EXPECT_TRUE(has(shape, Slot::kLoraSums));
  EXPECT_FALSE(has(shape, Slot::kLoraAGradient));
  shape.query_key_value.ranks = kLoraKernelRanksMax + 1;  // too many for the kernels; the output's are not
  EXPECT_TRUE(has(shape, Slot::kLoraSums));
  EXPECT_TRUE(has(shape, Slot::kLoraBGradient));
  shape.element_bytes = 4;
  EXPECT_FALSE(has(shape, Slot::kLoraSums));
}

// Both copies of a weight are there already; what comes are the codes of a tile.
TEST(Fp8, RowsOfTheWidestProductHaveABuffer) {
  StepShape shape = ShapeOf(257, 2, 0);
  const auto bytes = [&](Slot slot) {
    for (const Buffer& buffer : TrainingBuffers(shape, MemoryPolicy{KeepPolicy::kInput, 1, 0, 64, 32})) {
      if (buffer.slot == slot) return buffer.bytes;
    }
    return int64_t{0};
  };
  EXPECT_EQ(bytes(Slot::kFp8Codes), 0);
  shape.fp8 = true;
  EXPECT_EQ(bytes(Slot::kFp8Codes), 64 * 200) << "gate and up of a tile";
  EXPECT_EQ(bytes(Slot::kFp8Scales), 64 * 4);
}

TEST(KeptValues, AreThoseOfTheTable) {
  ForEachShapeAndPolicy([](const StepShape& shape, const MemoryPolicy& policy) {
    const int64_t d = shape.hidden_size, e = shape.element_bytes;
    int64_t values = d;                // input
    int64_t logsumexp = 0, parts = 1;  // which is fp32 in every compute dtype
    if (policy.keep >= KeepPolicy::kAttentionOutput) {
      values += shape.query_heads * shape.head_dim;
      logsumexp = shape.query_heads;
      parts += 2;
    }
    if (policy.keep >= KeepPolicy::kQueryKeyValue) {
      values += (shape.query_heads + 2 * shape.key_value_heads) * shape.head_dim;
      ++parts;
    }
    if (policy.keep >= KeepPolicy::kResidual && !shape.parallel_residual) {
      values += d;
      ++parts;
    }
    if (policy.keep >= KeepPolicy::kGateUp) {
      values += (shape.has_gate ? 2 : 1) * shape.intermediate_size;
      ++parts;
    }
    const int64_t exact = shape.rows * (values * e + logsumexp * 4);
    const int64_t bytes = KeptBytesOfLayer(shape, policy.keep).total();
    ASSERT_GE(bytes, exact);
    ASSERT_LT(bytes, exact + parts * kArenaAlignment);
    ASSERT_EQ(bytes % kArenaAlignment, 0);
  });
}

TEST(KeptValues, ALlama2LayerKeepsWhatTheDesignSays) {
  StepShape shape;
  shape.rows = 1024;
  shape.element_bytes = 2;
  shape.hidden_size = 4096;
  shape.intermediate_size = 11008;
  shape.query_heads = shape.key_value_heads = 32;
  shape.head_dim = 128;
  const int64_t kib[] = {8, 16, 40, 48, 91};
  for (size_t i = 0; i < 5; ++i) {
    const double per_token = static_cast<double>(KeptBytesOfLayer(shape, kPolicies[i]).total()) / 1024.0;
    EXPECT_NEAR(per_token / 1024.0, static_cast<double>(kib[i]), 0.2);
  }
}

TEST(KeptValues, CheckpointsLeaveOneSegmentWhole) {
  const StepShape shape = ShapeOf(64, 4, 0);
  const int64_t input = KeptBytesOfLayer(shape, KeepPolicy::kInput).total();
  const int64_t all = KeptBytesOfLayer(shape, KeepPolicy::kGateUp).total();
  const KeptPlan plan = PlanKeptValues(shape, {KeepPolicy::kGateUp, 3, 0, 64, 64});
  EXPECT_EQ(plan.long_lived, 3);  // layers 0, 3 and 6
  EXPECT_EQ(KeptValuesOf(plan).device_bytes, 3 * input + 3 * all - input);
}

TEST(KeptValues, LeaveForHostMemoryFromTheFirstLayerOn) {
  const StepShape shape = ShapeOf(64, 4, 0);
  const int64_t entry = KeptBytesOfLayer(shape, KeepPolicy::kAttentionOutput).total();
  for (const int64_t host : {0, 1, 5, 6, 100}) {
    const KeptPlan plan = PlanKeptValues(shape, {KeepPolicy::kAttentionOutput, 1, host, 64, 64});
    const KeptTotals totals = KeptValuesOf(plan);
    EXPECT_EQ(totals.host_bytes, std::min<int64_t>(host, 7 - kDeviceEntriesMin) * entry);
    EXPECT_EQ(totals.device_bytes + totals.host_bytes, 7 * entry);
    EXPECT_EQ(totals.host_traffic_bytes, 2 * totals.host_bytes);
  }
}

}  // namespace
}  // namespace longspan::planner
