// What attention operators of a GPU take: the formulas by hand, and calls cut into parts that keep to the bound.
#include "worker/planner/dense_attention_memory.h"

#include <gtest/gtest.h>

#include "tests/worker/planner/model_configs.h"
#include "worker/planner/attention_temporaries.h"
#include "worker/planner/plan_text.h"
#include "worker/planner/rank_memory.h"

namespace longspan::planner {
namespace {

constexpr int64_t kMebibyte = int64_t{1} << 20;

DenseCall Call(int64_t blocks, int64_t query_heads, int64_t key_value_heads, int64_t length, int64_t head_dim,
               int64_t element_bytes = 2) {
  DenseCall call;
  call.blocks = blocks;
  call.query_heads = query_heads;
  call.key_value_heads = key_value_heads;
  call.length = length;
  call.head_dim = head_dim;
  call.element_bytes = element_bytes;
  call.row_stride = (query_heads + 2 * key_value_heads) * head_dim;
  return call;
}

// Half of the heads of Llama-2-7B, groups of 2048 at 8192 tokens: 2^24 elements of q, 2^17 queries of a head.
TEST(DenseAttentionMemory, CudnnTakesItsOutputsAndSumsInFp32) {
  const DenseCall call = Call(4, 16, 16, 2048, 128);
  ASSERT_EQ(ChooseGpuAttention(call), GpuAttention::kCudnn);
  EXPECT_EQ(ForwardTemporaries(call), (int64_t{1} << 24) * 2 + (1 << 17) * 4);
  const int64_t gradients = 3 * (int64_t{1} << 24) * 2, sums = (int64_t{1} << 24) * 4 + (1 << 17) * 4;
  const int64_t logsumexp = (1 << 17) * 4, first_rows = 4 * 32 * 128 * 2;
  EXPECT_EQ(BackwardTemporaries(call), gradients + sums + logsumexp + first_rows);
}

TEST(DenseAttentionMemory, FlashPadsQueriesAndHeadsAndExpandsGroups) {
  const DenseCall call = Call(1, 8, 2, 100, 80);
  ASSERT_EQ(ChooseGpuAttention(call), GpuAttention::kFlash);
  EXPECT_EQ(ForwardTemporaries(call), 64000 * 2 + 800 * 4);
  const int64_t gradients = (64000 + 2 * 16000) * 2, copies = 2 * 64000 * 2, expanded = 2 * 64000 * 2;
  const int64_t sums = 128 * 8 * (96 + 1) * 4;
  EXPECT_EQ(BackwardTemporaries(call), gradients + copies + expanded + sums + 800 * 4 + (8 + 2) * 80 * 2);
}

TEST(DenseAttentionMemory, SegmentsArePaddedOneByOne) {
  DenseCall call = Call(1, 8, 8, 1000, 64);
  call.segments = 10;
  ASSERT_EQ(ChooseGpuAttention(call), GpuAttention::kFlash);
  const int64_t values = 1000 * 8 * 64;
  EXPECT_EQ(BackwardTemporaries(call), 5 * values * 2 + (1000 + 10 * 128) * 8 * (64 + 1) * 4 + 8000 * 4 + 16 * 64 * 2);
}

TEST(DenseAttentionMemory, EfficientRepeatsGroupsAndPadsLogsumexps) {
  const DenseCall call = Call(2, 4, 2, 33, 64, 4);
  ASSERT_EQ(ChooseGpuAttention(call), GpuAttention::kEfficient);
  const int64_t heads = 66 * 4 * 64 * 4, keys = 66 * 2 * 64 * 4, padded = 2 * 4 * 64;
  EXPECT_EQ(ForwardTemporaries(call), heads + 264 * 4 + padded * 4 + 2 * heads);
  EXPECT_EQ(BackwardTemporaries(call),
            4 * heads + (padded + 264) * 4 + padded * 64 * 4 + 2 * heads + 2 * keys + 264 * 4 + 2 * 6 * 64 * 4);
}

TEST(DenseAttentionMemory, CudnnIsLeftAloneBeyond32Bits) {
  DenseCall call = Call(1, 32, 32, 131072, 128);
  call.row_stride = 3 * 4096;
  EXPECT_EQ(ChooseGpuAttention(call), GpuAttention::kCudnn);
  call.length = 174763;  // times 12288 is 2^31 and more
  EXPECT_EQ(ChooseGpuAttention(call), GpuAttention::kFlash);
  call.length = 131072;
  call.blocks = 2;
  EXPECT_EQ(ChooseGpuAttention(call), GpuAttention::kFlash);
  EXPECT_EQ(PartOf(call).blocks, 1);
  EXPECT_EQ(ChooseGpuAttention(Cut(call, PartOf(call))), GpuAttention::kCudnn);
  EXPECT_FALSE(ChooseGpuAttention(Call(1, 4, 4, 64, 100)));
  EXPECT_FALSE(ChooseGpuAttention(Call(1, 4, 4, 64, 264)));
}

TEST(DenseAttentionMemory, PartsKeepToTheBoundWhereOneHeadOfABlockDoes) {
  for (const int64_t length : {1, 100, 2048, 25600, 65536, 262144, 1048576}) {
    for (const int64_t blocks : {1, 3, 4, 40, 100000}) {
      for (const int64_t heads : {1, 5, 8, 16, 32}) {
        for (const int64_t group : {1, 4}) {
          for (const int64_t element : {2, 4}) {
            const DenseCall call = Call(blocks, heads * group, heads, length, 128, element);
            const DensePart part = PartOf(call);
            ASSERT_TRUE(part.blocks >= 1 && part.blocks <= blocks) << part.blocks;
            ASSERT_TRUE(part.key_value_heads >= 1 && part.key_value_heads <= heads);
            const auto bytes = [&](const DensePart& of) {
              return std::max(ForwardTemporaries(Cut(call, of)), BackwardTemporaries(Cut(call, of)));
            };
            if (bytes({1, 1}) <= kDensePartBytes) {
              EXPECT_LE(bytes(part), kDensePartBytes) << length << " " << blocks << " " << heads << " " << group;
            } else {
              EXPECT_TRUE(part.blocks == 1 && part.key_value_heads == 1);
            }
            // No smaller than they need be, unless 32 bits say so.
            const bool spans =
                ChooseGpuAttention(Cut(call, {blocks, heads})) != ChooseGpuAttention(Cut(call, {1, heads}));
            if (!spans && bytes({blocks, heads}) <= kDensePartBytes / 2) {
              EXPECT_TRUE(part.blocks == blocks && part.key_value_heads == heads)
                  << length << " " << blocks << " " << heads;
            }
          }
        }
      }
    }
  }
}

jobfile::JobSpec Spec(int64_t context) {
  jobfile::JobSpec spec;
  spec.context_length = context;
  spec.training.dtype = jobfile::TrainingDtype::kBf16;
  return spec;
}

TEST(AttentionTemporaries, AreCountedOnAGpuAlone) {
  for (const bool gpu : {false, true}) {
    const PlannedJob job = JobOf(Llama2_7B(), Spec(8192), gpu ? *ProfileOf("NVIDIA H100", 1) : CpuProfile(1));
    const RankMemory memory = MemoryOfRank(job, MemoryPolicy{});
    // Groups of a quarter, 16 heads of each half: the call of the first test.
    EXPECT_EQ(memory.attention, gpu ? BackwardTemporaries(Call(4, 16, 16, 2048, 128)) : 0);
    bool told = false;
    for (const auto& [kind, bytes] : DeviceKinds(memory)) told |= kind == "attention" && bytes == memory.attention;
    EXPECT_EQ(told, gpu);
  }
}

TEST(AttentionTemporaries, GrowNoFurtherThanTheBound) {
  for (const int64_t context : {8192, 32768, 102400, 262144, 1048576}) {
    const PlannedJob job = JobOf(Llama2_7B(), Spec(context), *ProfileOf("NVIDIA H200", 1));
    EXPECT_LE(MemoryOfRank(job, MemoryPolicy{}).attention, kDensePartBytes) << context;
    EXPECT_GT(MemoryOfRank(job, MemoryPolicy{}).attention, kDensePartBytes / 4) << context;
  }
}

TEST(AttentionTemporaries, TilesOfHeadsTakeLess) {
  const PlannedJob job = JobOf(Llama2_7B(), Spec(8192), *ProfileOf("NVIDIA H100", 1));
  MemoryPolicy one_head;
  one_head.tile_heads = 1;
  // One head back, all heads of a half forward.
  EXPECT_EQ(MemoryOfRank(job, one_head).attention, ForwardTemporaries(Call(4, 16, 16, 2048, 128)));
}

TEST(AttentionTemporaries, PackedDocumentsAreCutByTheSameBound) {
  jobfile::JobSpec spec = Spec(8192);
  spec.data.packing = true;
  EXPECT_EQ(MemoryOfRank(JobOf(Llama2_7B(), spec, *ProfileOf("NVIDIA H100", 1)), MemoryPolicy{}).attention,
            512 * kMebibyte);
  // 64 rows of 4 heads of 16: no more than every row by itself would take.
  spec = Spec(64);
  spec.data.packing = true;
  const RankMemory small = MemoryOfRank(JobOf(TinyQwen(), spec, *ProfileOf("NVIDIA H100", 1)), MemoryPolicy{});
  DenseCall rows = Call(1, 4, 2, 64, 16);
  rows.segments = 64;
  EXPECT_EQ(small.attention, BackwardTemporaries(rows));
}

}  // namespace
}  // namespace longspan::planner
