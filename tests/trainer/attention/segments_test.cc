// Lists of segments against the definition of blocks, and joined calls against the calls that they are made of.
#include "worker/trainer/attention/segments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/attention/dense_blocks.h"
#include "worker/trainer/attention/segment_attention.h"

namespace longspan::trainer {
namespace {

using Lengths = std::vector<int64_t>;

const std::vector<Lengths> kPackings = {
    {48},          {1, 47}, {47, 1}, {5, 19, 13, 11}, {8, 8, 8, 16, 8}, {1, 1, 1, 1, 20, 24}, {3, 3, 18, 7, 7, 7, 3},
    Lengths(48, 1)};

AttentionShape ShapeOf(const Lengths& documents, int64_t query_heads, int64_t key_value_heads) {
  const int64_t rows = std::accumulate(documents.begin(), documents.end(), int64_t{0});
  AttentionShape shape{1, rows, query_heads, key_value_heads};
  int64_t row = 0;
  for (const int64_t length : documents) {
    if (!shape.documents.empty() && shape.documents.back().tokens == length) {
      ++shape.documents.back().documents;
    } else {
      shape.documents.push_back({row, 1, length});
    }
    row += length;
  }
  return shape;
}

// Runs of rows of one document and one block(i) = floor((i + shift) / group), where i counts from the document's start.
std::vector<Segment> ByDefinition(const Lengths& documents, int64_t group, int64_t shift) {
  std::vector<Segment> segments;
  int64_t row = 0;
  for (const int64_t length : documents) {
    for (int64_t i = 0; i < length; ++i, ++row) {
      const bool begins = i == 0 || (i + shift) / group != (i - 1 + shift) / group;
      if (begins) segments.push_back({row, 0});
      ++segments.back().rows;
    }
  }
  return segments;
}

AttentionPlan CallsOfHead(const AttentionPlan& plan, int64_t query_head) {
  AttentionPlan calls;
  for (const AttentionCall& call : plan) {
    if (call.query_head <= query_head && query_head < call.query_head + call.query_heads) calls.push_back(call);
  }
  return calls;
}

// Those of a plan with lists, written out.
std::vector<Segment> WrittenOut(const AttentionPlan& calls) {
  std::vector<Segment> segments;
  for (const AttentionCall& call : calls) {
    for (int64_t block = 0; call.segments.empty() && block < call.blocks; ++block) {
      segments.push_back({call.first_row + block * call.stride_rows, call.length});
    }
    for (size_t i = 0; i + 1 < call.segments.starts.size(); ++i) {
      segments.push_back(
          {call.first_row + call.segments.starts[i], call.segments.starts[i + 1] - call.segments.starts[i]});
    }
  }
  return segments;
}

TEST(Segments, OfBothHalvesAreTheDefinitions) {
  for (const Lengths& documents : kPackings) {
    for (const int64_t group : {1, 2, 5, 7, 8, 16, 50}) {
      const AttentionPlan plan = PlanShiftedSparseAttention(ShapeOf(documents, 6, 3), group);
      for (int64_t head = 0; head < 6; ++head) {
        EXPECT_TRUE(SegmentsOf(CallsOfHead(plan, head)) == ByDefinition(documents, group, head < 3 ? 0 : group / 2))
            << "group " << group << ", head " << head;
      }
    }
    const AttentionPlan full = PlanFullAttention(ShapeOf(documents, 4, 2));
    EXPECT_TRUE(SegmentsOf(full) == ByDefinition(documents, 48, 0));
  }
}

TEST(Segments, JoinedCallsHaveTheSameInOrder) {
  bool any_list = false;
  for (const Lengths& documents : kPackings) {
    for (const int64_t group : {1, 3, 8, 50}) {
      for (const int64_t rows_max : {1, 129, 300, 700, 65536}) {
        const AttentionPlan plan = PlanShiftedSparseAttention(ShapeOf(documents, 6, 3), group);
        const AttentionPlan joined = JoinSegments(plan, at::kCPU, rows_max);
        EXPECT_LE(joined.size(), plan.size());
        EXPECT_EQ(LogsumexpSize(joined), LogsumexpSize(plan));
        for (int64_t head = 0; head < 6; ++head) {
          const AttentionPlan calls = CallsOfHead(joined, head), before = CallsOfHead(plan, head);
          if (calls.size() == before.size()) continue;  // as they were
          EXPECT_TRUE(WrittenOut(calls) == SegmentsOf(before)) << "group " << group << ", rows " << rows_max;
          for (const AttentionCall& call : calls) {
            any_list = any_list || !call.segments.empty();
            EXPECT_EQ(call.adds_to_key_value, before[0].adds_to_key_value);
            EXPECT_EQ(call.key_value_head, before[0].key_value_head);
            if (call.segments.empty()) continue;
            EXPECT_LE(call.length + call.segments.count() * kSegmentPadding, rows_max);
          }
        }
      }
    }
  }
  EXPECT_TRUE(any_list);
}

TEST(Segments, ListsSayTheSameToHostAndDevice) {
  const AttentionPlan joined = JoinSegments(PlanFullAttention(ShapeOf({5, 19, 13, 11}, 4, 2)), at::kCPU);
  ASSERT_EQ(joined.size(), 1u);
  const SegmentList& list = joined[0].segments;
  EXPECT_EQ(list.starts, (std::vector<int32_t>{0, 5, 24, 37, 48}));
  EXPECT_EQ(list.longest, 19);
  EXPECT_TRUE(list.starts_on_device.equal(at::tensor({0, 5, 24, 37, 48}, at::kInt)));
  EXPECT_TRUE(list.first_rows_on_device.equal(at::tensor({0, 5, 24, 37}, at::kLong)));
}

TEST(Segments, EqualOnesStayADenseCall) {
  AttentionShape shape = ShapeOf(Lengths(12, 4), 4, 2);
  const AttentionPlan joined = JoinSegments(PlanShortAttention(shape, 2), at::kCPU);
  ASSERT_EQ(joined.size(), 1u);
  EXPECT_TRUE(joined[0].segments.empty());
  EXPECT_EQ(joined[0].blocks, 24);
  EXPECT_EQ(joined[0].length, 2);
}

TEST(Segments, BlocksThatSeeRowsBeforeThemStayAsTheyAre) {
  const AttentionPlan plan = PlanShiftedSparseAttention(ShapeOf({20, 28}, 4, 2), 8, BlockEdge::kWrap);
  const AttentionPlan joined = JoinSegments(plan, at::kCPU);
  const auto prefixes = [](const AttentionPlan& calls) {
    return std::count_if(calls.begin(), calls.end(), [](const AttentionCall& call) { return call.prefix_length > 0; });
  };
  EXPECT_GT(prefixes(plan), 0);
  EXPECT_EQ(prefixes(joined), prefixes(plan));
  EXPECT_EQ(CallsOfHead(joined, 3).size(), CallsOfHead(plan, 3).size());
  EXPECT_LT(CallsOfHead(joined, 0).size(), CallsOfHead(plan, 0).size());
}

TEST(Segments, RowsThatAreMissingAreRefused) {
  AttentionPlan plan = PlanFullAttention(ShapeOf({5, 19, 24}, 4, 2));
  plan.erase(plan.begin() + 1);
  EXPECT_THROW(SegmentsOf(plan), c10::Error);
}

TEST(Segments, FirstRowsAreTakenAsOutOfEachSegmentAlone) {
  const SegmentList list = JoinSegments(PlanFullAttention(ShapeOf({5, 19, 1, 23}, 6, 3)), at::kCPU)[0].segments;
  const at::Tensor fused = at::empty({48, 10, 4}).normal_(0, 1, NamedGenerator(1, "rows"));
  const at::Tensor out_gradient = fused.narrow(1, 2, 6), before = out_gradient.clone(), all_before = fused.clone();
  const at::Tensor taken = TakeFirstRowsOfSegments(list, out_gradient, 3);
  for (size_t i = 0; i + 1 < list.starts.size(); ++i) {
    const int64_t first = list.starts[i], rows = list.starts[i + 1] - first;
    const at::Tensor block = before.narrow(0, first, rows).transpose(0, 1).unsqueeze(0);  // (1, Hq, rows, D)
    EXPECT_TRUE(taken[static_cast<int64_t>(i)].equal(TakeFirstRows(block, 3)[0])) << i;
  }
  EXPECT_TRUE(out_gradient.equal(before));  // whose first rows the loop above has cleared
  EXPECT_TRUE(fused.narrow(1, 0, 2).equal(all_before.narrow(1, 0, 2)));
}

// Every part by itself gives what the whole call gives: the same bits but for
// dK and dV, which ATen's kernel for the CPU rounds by how many blocks there are.
void ExpectPartsGiveTheWhole(int64_t group) {
  constexpr int64_t kBlocks = 3, kLength = 21, kHeads = 4, kPrefix = 7, kSize = 16;
  const auto draw = [](const char* name, at::IntArrayRef sizes) {
    return at::empty(sizes).normal_(0, 1, NamedGenerator(3, name));
  };
  const at::Tensor q = draw("q", {kBlocks, kHeads * group, kLength, kSize});
  const at::Tensor own = draw("own", {2, kBlocks, kHeads, kLength, kSize});
  const at::Tensor before = draw("before", {2, kBlocks, kHeads, kPrefix, kSize});
  const at::Tensor out_gradient = draw("gradient", q.sizes());
  for (const bool prefix : {false, true}) {
    for (const bool adds : {false, true}) {
      std::vector<FlashKeys> keys;
      if (prefix) keys.push_back({before[0], before[1], /*causal=*/false});
      keys.push_back({own[0], own[1], /*causal=*/true});
      const auto run = [&](const planner::DensePart& part) {
        std::vector<at::Tensor> results = {at::empty_like(q), at::empty({kBlocks, kHeads * group, kLength}),
                                           at::ones_like(q)};
        const FlashQueries queries{q, results[0], results[1]};
        DenseBlocksForward(queries, keys, part);
        std::vector<FlashKeyGradients> to;
        for (const FlashKeys& key : keys) {
          to.push_back({at::ones_like(key.k), at::ones_like(key.v), adds});
          results.push_back(to.back().k);
          results.push_back(to.back().v);
        }
        DenseBlocksBackward(queries, keys, {out_gradient.clone(), results[2], adds}, to, part);
        return results;
      };
      const std::vector<at::Tensor> expected = run({kBlocks, kHeads});
      for (const planner::DensePart part : {planner::DensePart{1, 1}, {2, 4}, {1, 3}, {3, 2}}) {
        const std::vector<at::Tensor> actual = run(part);
        for (size_t i = 0; i < expected.size(); ++i) {
          SCOPED_TRACE(std::to_string(i) + ", parts of " + std::to_string(part.blocks) + " x " +
                       std::to_string(part.key_value_heads));
          if (i < 3) {
            EXPECT_TRUE(actual[i].equal(expected[i]));
          }
          EXPECT_LT(testing::RelativeError(actual[i], expected[i]), 1e-6);
        }
      }
    }
  }
}

TEST(DenseBlocks, PartsGiveTheWhole) { ExpectPartsGiveTheWhole(1); }
TEST(DenseBlocks, PartsOfGroupedHeadsGiveTheWhole) { ExpectPartsGiveTheWhole(2); }

TEST(DenseBlocks, ACallReachesFromTheFirstElementOfItsTensorsToTheLast) {
  const at::Tensor rows = at::empty({100, 12, 8});  // q, k and v of 4 heads each
  const auto heads = [&](int64_t first) { return rows.as_strided({3, 4, 20, 8}, {30 * 96, 8, 96, 1}, first * 8); };
  const planner::DenseCall call = DenseCallOf(heads(0), heads(4), heads(8));
  EXPECT_EQ(call.blocks, 3);
  EXPECT_EQ(call.length, 20);
  EXPECT_EQ(call.block_rows, 30);
  const int64_t reach = 2 * 30 * 96 + 3 * 8 + 19 * 96 + 7 + 1;
  EXPECT_GE(80 * call.row_stride, reach);
  EXPECT_LT(80 * (call.row_stride - 1), reach);
}

}  // namespace
}  // namespace longspan::trainer
