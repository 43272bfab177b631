// Attention by dense calls on views against attention with a mask, with autograd as the oracle of the backward pass.
#include "worker/trainer/attention/attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/attention/segments.h"

namespace longspan::trainer {
namespace {

using testing::RelativeError;

constexpr int64_t kHeadSize = 4;

enum class Kind { kSplit, kWrap, kShort };

struct Case {
  int64_t sequences, tokens, query_heads, key_value_heads, group;  // group 0: full attention
  Kind kind = Kind::kSplit;
  std::vector<int64_t> documents{};  // lengths, over all rows in order; empty: each sequence is one
};

std::string Name(const Case& c) {
  std::string name = "B" + std::to_string(c.sequences) + " T" + std::to_string(c.tokens) + " Hq" +
                     std::to_string(c.query_heads) + " Hkv" + std::to_string(c.key_value_heads) + " G" +
                     std::to_string(c.group) + " kind " + std::to_string(static_cast<int>(c.kind));
  for (const int64_t length : c.documents) name += " D" + std::to_string(length);
  return name;
}

AttentionShape ShapeOf(const Case& c) {
  AttentionShape shape{c.sequences, c.tokens, c.query_heads, c.key_value_heads};
  int64_t row = 0;
  for (const int64_t length : c.documents) {
    if (!shape.documents.empty() && shape.documents.back().tokens == length) {
      ++shape.documents.back().documents;
    } else {
      shape.documents.push_back({row, 1, length});
    }
    row += length;
  }
  return shape;
}

AttentionPlan PlanOf(const Case& c) {
  if (c.group == 0) return PlanFullAttention(ShapeOf(c));
  if (c.kind == Kind::kShort) return PlanShortAttention(ShapeOf(c), c.group);
  return PlanShiftedSparseAttention(ShapeOf(c), c.group, c.kind == Kind::kWrap ? BlockEdge::kWrap : BlockEdge::kSplit);
}

// The definition, token by token, for a document of `tokens`.
bool Attends(const Case& c, int64_t tokens, int64_t head, int64_t i, int64_t j) {
  if (j > i) return false;
  if (c.group == 0) return true;
  const int64_t shift = c.kind == Kind::kShort || 2 * head < c.query_heads ? 0 : c.group / 2;
  const auto block = [&](int64_t position) { return (position + shift) / c.group; };
  if (block(i) == block(j)) return true;
  return c.kind == Kind::kWrap && 2 * head >= c.query_heads && block(i) == block(tokens - 1) && block(j) == 0;
}

// (Hq, N, N) over the rows of all sequences.
at::Tensor MaskOf(const Case& c) {
  const int64_t rows = c.sequences * c.tokens;
  at::Tensor mask = at::full({c.query_heads, rows, rows}, -INFINITY);
  auto values = mask.accessor<float, 3>();
  std::vector<int64_t> documents = c.documents;
  if (documents.empty()) documents.assign(static_cast<size_t>(c.sequences), c.tokens);
  int64_t first = 0;
  for (const int64_t length : documents) {
    for (int64_t head = 0; head < c.query_heads; ++head) {
      for (int64_t i = 0; i < length; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          if (Attends(c, length, head, i, j)) values[head][first + i][first + j] = 0;
        }
      }
    }
    first += length;
  }
  return mask;
}

at::Tensor MaskedAttention(const Case& c, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const int64_t repeats = c.query_heads / c.key_value_heads;
  const at::Tensor keys = k.transpose(0, 1).repeat_interleave(repeats, 0);
  const at::Tensor values = v.transpose(0, 1).repeat_interleave(repeats, 0);
  const at::Tensor scores =
      at::matmul(q.transpose(0, 1), keys.transpose(1, 2)) / std::sqrt(double{kHeadSize}) + MaskOf(c);
  return at::matmul(at::softmax(scores, -1), values).transpose(0, 1);
}

struct Heads {
  at::Tensor fused, q, k, v;
};

// Views of one fused tensor, as the layer has them.
Heads MakeHeads(const Case& c, bool random) {
  Heads heads;
  heads.fused = at::zeros({c.sequences * c.tokens, c.query_heads + 2 * c.key_value_heads, kHeadSize});
  if (random) heads.fused.normal_(0, 1, NamedGenerator(1, Name(c)));
  heads.q = heads.fused.narrow(1, 0, c.query_heads);
  heads.k = heads.fused.narrow(1, c.query_heads, c.key_value_heads);
  heads.v = heads.fused.narrow(1, c.query_heads + c.key_value_heads, c.key_value_heads);
  return heads;
}

// With every kind of kernel, ATen's among them.
std::vector<FlashSetting> Settings() {
  std::vector<FlashSetting> settings = {{{}, FlashInstructions::kNone}};
  for (const FlashInstructions instructions : UsableFlashInstructions()) settings.push_back({{}, instructions});
  return settings;
}

void ExpectAgreesWithMask(const Case& c, const AttentionPlan& plan) {
  const Heads heads = MakeHeads(c, true);
  at::Tensor q = heads.q.clone().requires_grad_(true);
  at::Tensor k = heads.k.clone().requires_grad_(true);
  at::Tensor v = heads.v.clone().requires_grad_(true);
  const at::Tensor expected = MaskedAttention(c, q, k, v);
  const at::Tensor out_gradient = at::empty_like(expected).normal_(0, 1, NamedGenerator(2, Name(c)));
  expected.backward(out_gradient);

  for (const FlashSetting& setting : Settings()) {
    SCOPED_TRACE(NameOf(setting.instructions));
    const at::Tensor out = at::full(expected.sizes(), NAN);
    const auto logsumexp = AttentionForward(plan, heads.q, heads.k, heads.v, out, setting);
    EXPECT_LT(RelativeError(out, expected.detach()), 1e-5);

    const Heads gradients = MakeHeads(c, false);
    gradients.fused.fill_(NAN);
    AttentionBackward(plan, {heads.q, heads.k, heads.v, out}, logsumexp, out_gradient.clone(),
                      {gradients.q, gradients.k, gradients.v}, setting);
    EXPECT_LT(RelativeError(gradients.q, q.grad()), 1e-5);
    EXPECT_LT(RelativeError(gradients.k, k.grad()), 1e-5);
    EXPECT_LT(RelativeError(gradients.v, v.grad()), 1e-5);
  }
}

void ExpectAgreesWithMask(const Case& c) {
  SCOPED_TRACE(Name(c));
  ExpectAgreesWithMask(c, PlanOf(c));
}

TEST(Attention, AgreesWithAMaskForHeadsOfEveryKind) {
  for (const auto& [query_heads, key_value_heads] : std::vector<std::pair<int64_t, int64_t>>{
           {4, 4}, {4, 2}, {4, 1}, {9, 3}, {6, 3}, {5, 5}, {7, 1}, {15, 5}, {1, 1}, {2, 1}}) {
    for (const int64_t group : {0, 1, 5, 8}) ExpectAgreesWithMask({1, 21, query_heads, key_value_heads, group});
  }
}

TEST(Attention, AgreesWithAMaskForEveryLengthAndGroup) {
  for (const int64_t tokens : {1, 2, 3, 7, 8, 9, 16, 33}) {
    for (const int64_t group : {1, 2, 3, 4, 8, 15, 16, 33, 100}) ExpectAgreesWithMask({1, tokens, 6, 3, group});
  }
}

TEST(Attention, AgreesWithAMaskForBatches) {
  for (const int64_t sequences : {2, 3}) {
    for (const int64_t tokens : {1, 8, 13, 24}) {
      for (const int64_t group : {0, 1, 4, 6, 8, 24, 50}) ExpectAgreesWithMask({sequences, tokens, 4, 2, group});
    }
  }
}

constexpr Kind kOtherKinds[] = {Kind::kWrap, Kind::kShort};

TEST(Attention, WrapAndShortAgreeWithAMaskForHeadsOfEveryKind) {
  for (const auto& [query_heads, key_value_heads] : std::vector<std::pair<int64_t, int64_t>>{
           {4, 4}, {4, 2}, {4, 1}, {9, 3}, {6, 3}, {5, 5}, {7, 1}, {15, 5}, {1, 1}, {2, 1}}) {
    for (const Kind kind : kOtherKinds) {
      for (const int64_t group : {1, 5, 8}) ExpectAgreesWithMask({1, 24, query_heads, key_value_heads, group, kind});
    }
  }
}

TEST(Attention, WrapAndShortAgreeWithAMaskForEveryLengthAndGroup) {
  for (const int64_t tokens : {1, 2, 3, 7, 8, 9, 12, 16, 33}) {
    for (const int64_t group : {1, 2, 3, 4, 5, 8, 15, 16, 33, 100}) {
      for (const Kind kind : kOtherKinds) ExpectAgreesWithMask({1, tokens, 6, 3, group, kind});
    }
  }
}

TEST(Attention, WrapAndShortAgreeWithAMaskForBatches) {
  for (const int64_t sequences : {2, 3}) {
    for (const int64_t tokens : {1, 8, 13, 24}) {
      for (const int64_t group : {1, 4, 6, 7, 8, 24, 50}) {
        for (const Kind kind : kOtherKinds) ExpectAgreesWithMask({sequences, tokens, 4, 2, group, kind});
      }
    }
  }
}

TEST(Attention, AgreesWithAMaskWithinPackedDocuments) {
  const std::vector<std::vector<int64_t>> packings = {
      {24, 24}, {1, 47}, {47, 1}, {5, 19, 13, 11}, {8, 8, 8, 16, 8}, {1, 1, 1, 1, 20, 24}, {3, 3, 18, 7, 7, 7, 3}};
  for (const auto& documents : packings) {
    for (const int64_t group : {0, 1, 4, 5, 8, 16, 50}) {
      for (const Kind kind : {Kind::kSplit, Kind::kWrap, Kind::kShort}) {
        ExpectAgreesWithMask({2, 24, 6, 3, group, kind, documents});
      }
    }
  }
}

TEST(Attention, AgreesWithAMaskWithinPackedDocumentsInJoinedCalls) {
  const std::vector<std::vector<int64_t>> packings = {
      {24, 24}, {1, 47}, {5, 19, 13, 11}, {8, 8, 8, 16, 8}, {1, 1, 1, 1, 20, 24}, {3, 3, 18, 7, 7, 7, 3}};
  int64_t lists = 0;
  for (const auto& documents : packings) {
    for (const int64_t group : {0, 1, 5, 8, 50}) {
      for (const Kind kind : {Kind::kSplit, Kind::kWrap, Kind::kShort}) {
        const Case c{2, 24, 6, 3, group, kind, documents};
        for (const int64_t rows_max : {kJoinedRowsMax, 3 * kSegmentPadding + 24}) {
          SCOPED_TRACE(Name(c) + " rows " + std::to_string(rows_max));
          const AttentionPlan plan = JoinSegments(PlanOf(c), at::kCPU, rows_max);
          for (const AttentionCall& call : plan) lists += call.segments.empty() ? 0 : 1;
          ExpectAgreesWithMask(c, plan);
        }
      }
    }
  }
  EXPECT_GT(lists, 100);
}

TEST(Attention, WrappedGroupsAreThePapersWithoutTheLeak) {
  // 4 groups of 16: the last 8 tokens of the moved half see the first 8; nothing else changes.
  const AttentionPlan plan = PlanShiftedSparseAttention({1, 64, 8, 4}, 16, BlockEdge::kWrap);
  ASSERT_EQ(plan.size(), 4u);
  EXPECT_EQ(plan[3].first_row, 56);
  EXPECT_EQ(plan[3].length, 8);
  EXPECT_EQ(plan[3].prefix_first_row, 0);
  EXPECT_EQ(plan[3].prefix_length, 8);
  for (size_t call = 0; call < 3; ++call) EXPECT_EQ(plan[call].prefix_length, 0);
}

TEST(Attention, RunsOfEqualDocumentsShareTheirCalls) {
  AttentionShape shape{2, 64, 8, 4};
  shape.documents = {{0, 4, 16}, {64, 2, 32}};
  EXPECT_EQ(PlanFullAttention(shape).size(), 2u);
  EXPECT_EQ(PlanShiftedSparseAttention(shape, 16).size(), 2u + 2u + 3u);
}

TEST(Attention, EveryTokenOfEveryQueryHeadIsInExactlyOneCall) {
  for (const int64_t tokens : {1, 5, 16, 17, 40}) {
    for (const int64_t group : {1, 2, 7, 16, 64}) {
      const AttentionShape shape{2, tokens, 9, 3};
      at::Tensor count = at::zeros({2 * tokens, 9}, at::kInt);
      for (const AttentionCall& call : PlanShiftedSparseAttention(shape, group)) {
        for (int64_t block = 0; block < call.blocks; ++block) {
          count.narrow(0, call.first_row + block * call.stride_rows, call.length)
              .narrow(1, call.query_head, call.query_heads)
              .add_(1);
        }
      }
      EXPECT_TRUE(count.eq(1).all().item<bool>()) << "T " << tokens << " G " << group;
    }
  }
}

TEST(Attention, GroupsThatDivideTheSequenceTakeFiveCalls) {
  // Unshifted; first half group, interior, last half group of the others. The fifth is what does not divide.
  EXPECT_EQ(PlanShiftedSparseAttention({1, 64, 8, 4}, 16).size(), 4u);
  EXPECT_EQ(PlanShiftedSparseAttention({1, 65, 8, 4}, 16).size(), 5u);
  EXPECT_EQ(PlanFullAttention({3, 64, 8, 4}).size(), 1u);
}

TEST(Attention, UnshiftedHalfEqualsFullAttentionWhenTheGroupIsTheSequence) {
  const Case full{1, 20, 4, 2, 0};
  const Heads heads = MakeHeads(full, true);
  const at::Tensor expected = at::empty({20, 4, kHeadSize});
  const at::Tensor actual = at::empty({20, 4, kHeadSize});
  AttentionForward(PlanOf(full), heads.q, heads.k, heads.v, expected);
  AttentionForward(PlanShiftedSparseAttention({1, 20, 4, 2}, 20), heads.q, heads.k, heads.v, actual);
  EXPECT_LT(RelativeError(actual.narrow(1, 0, 2), expected.narrow(1, 0, 2)), 1e-6);
  EXPECT_GT(RelativeError(actual.narrow(1, 2, 2), expected.narrow(1, 2, 2)), 1e-3);
}

TEST(Attention, TokensThatSeeOnlyThemselvesMoveNoQueryAndNoKey) {
  const Case c{1, 9, 4, 2, 1};
  const AttentionPlan plan = PlanOf(c);
  const Heads heads = MakeHeads(c, true);
  const at::Tensor out = at::empty({9, 4, kHeadSize});
  for (const FlashSetting& setting : Settings()) {
    const auto logsumexp = AttentionForward(plan, heads.q, heads.k, heads.v, out, setting);
    const Heads gradients = MakeHeads(c, false);
    AttentionBackward(plan, {heads.q, heads.k, heads.v, out}, logsumexp, at::ones_like(out),
                      {gradients.q, gradients.k, gradients.v}, setting);
    EXPECT_TRUE(gradients.q.eq(0).all().item<bool>()) << NameOf(setting.instructions);
    EXPECT_TRUE(gradients.k.eq(0).all().item<bool>()) << NameOf(setting.instructions);
  }
}

TEST(Attention, WritesIntoGivenLogsumexpsAndWorkspace) {
  const Case c{2, 21, 9, 3, 8, Kind::kWrap};
  const AttentionPlan plan = PlanOf(c);
  EXPECT_EQ(LogsumexpSize(plan), 2 * 21 * 9);  // every token of every head once
  const Heads heads = MakeHeads(c, true);
  for (FlashSetting setting : Settings()) {
    const at::Tensor expected_out = at::empty({42, 9, kHeadSize}), out = at::empty({42, 9, kHeadSize});
    const auto expected = AttentionForward(plan, heads.q, heads.k, heads.v, expected_out, setting);
    setting.workspace = at::empty({FlashWorkspaceSize(kHeadSize, 1)});
    const at::Tensor all = at::full({LogsumexpSize(plan)}, NAN);
    const auto logsumexp = SplitLogsumexp(plan, all);
    AttentionForward(plan, heads.q, heads.k, heads.v, out, logsumexp, setting);
    EXPECT_TRUE(out.equal(expected_out));
    EXPECT_TRUE(all.isfinite().all().item<bool>());
    for (size_t call = 0; call < plan.size(); ++call) EXPECT_TRUE(logsumexp[call].equal(expected[call]));
  }
  EXPECT_THROW(SplitLogsumexp(plan, at::empty({5})), c10::Error);
}

TEST(Attention, RefusesShapesThatMeanNothing) {
  EXPECT_THROW(PlanFullAttention({1, 8, 4, 3}), c10::Error);
  EXPECT_THROW(PlanShiftedSparseAttention({1, 8, 4, 2}, 0), c10::Error);
  EXPECT_THROW(PlanFullAttention({1, 0, 4, 2}), c10::Error);
  EXPECT_THROW(PlanShortAttention({1, 8, 4, 2}, 0), c10::Error);
  EXPECT_THROW(PlanFullAttention({1, 8, 4, 2, {{0, 1, 7}}}), c10::Error);
  EXPECT_THROW(PlanFullAttention({1, 8, 4, 2, {{1, 1, 7}}}), c10::Error);
}

}  // namespace
}  // namespace longspan::trainer
