// Attention by dense calls on views against attention with a mask, with autograd as the oracle of the backward pass.
#include "worker/trainer/attention/attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/trainer/tiny_llama.h"

namespace longspan::trainer {
namespace {

using testing::RelativeError;

constexpr int64_t kHeadSize = 4;

struct Case {
  int64_t sequences, tokens, query_heads, key_value_heads, group;  // group 0: full attention
};

std::string Name(const Case& c) {
  return "B" + std::to_string(c.sequences) + " T" + std::to_string(c.tokens) + " Hq" + std::to_string(c.query_heads) +
         " Hkv" + std::to_string(c.key_value_heads) + " G" + std::to_string(c.group);
}

AttentionPlan PlanOf(const Case& c) {
  const AttentionShape shape{c.sequences, c.tokens, c.query_heads, c.key_value_heads};
  return c.group == 0 ? PlanFullAttention(shape) : PlanShiftedSparseAttention(shape, c.group);
}

// The definition, token by token.
bool Attends(const Case& c, int64_t head, int64_t i, int64_t j) {
  if (j > i) return false;
  if (c.group == 0) return true;
  const int64_t shift = 2 * head < c.query_heads ? 0 : c.group / 2;
  return (i + shift) / c.group == (j + shift) / c.group;
}

at::Tensor MaskOf(const Case& c) {
  at::Tensor mask = at::full({c.query_heads, c.tokens, c.tokens}, -INFINITY);
  auto values = mask.accessor<float, 3>();
  for (int64_t head = 0; head < c.query_heads; ++head) {
    for (int64_t i = 0; i < c.tokens; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        if (Attends(c, head, i, j)) values[head][i][j] = 0;
      }
    }
  }
  return mask;
}

at::Tensor MaskedAttention(const Case& c, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const auto heads_first = [&](const at::Tensor& rows) {
    return rows.view({c.sequences, c.tokens, rows.size(1), kHeadSize}).transpose(1, 2);
  };
  const int64_t repeats = c.query_heads / c.key_value_heads;
  const at::Tensor keys = heads_first(k).repeat_interleave(repeats, 1);
  const at::Tensor values = heads_first(v).repeat_interleave(repeats, 1);
  const at::Tensor scores = at::matmul(heads_first(q), keys.transpose(2, 3)) / std::sqrt(double{kHeadSize}) + MaskOf(c);
  return at::matmul(at::softmax(scores, -1), values)
      .transpose(1, 2)
      .reshape({c.sequences * c.tokens, c.query_heads, kHeadSize});
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

void ExpectAgreesWithMask(const Case& c) {
  SCOPED_TRACE(Name(c));
  const AttentionPlan plan = PlanOf(c);
  const Heads heads = MakeHeads(c, true);
  const at::Tensor out = at::full({c.sequences * c.tokens, c.query_heads, kHeadSize}, NAN);
  const auto logsumexp = AttentionForward(plan, heads.q, heads.k, heads.v, out);
  const at::Tensor out_gradient = at::empty_like(out).normal_(0, 1, NamedGenerator(2, Name(c)));

  at::Tensor q = heads.q.clone().requires_grad_(true);
  at::Tensor k = heads.k.clone().requires_grad_(true);
  at::Tensor v = heads.v.clone().requires_grad_(true);
  const at::Tensor expected = MaskedAttention(c, q, k, v);
  expected.backward(out_gradient.clone());
  EXPECT_LT(RelativeError(out, expected.detach()), 1e-5);

  const Heads gradients = MakeHeads(c, false);
  gradients.fused.fill_(NAN);
  AttentionBackward(plan, {heads.q, heads.k, heads.v, out}, logsumexp, out_gradient,
                    {gradients.q, gradients.k, gradients.v});
  EXPECT_LT(RelativeError(gradients.q, q.grad()), 1e-5);
  EXPECT_LT(RelativeError(gradients.k, k.grad()), 1e-5);
  EXPECT_LT(RelativeError(gradients.v, v.grad()), 1e-5);
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
  const auto logsumexp = AttentionForward(plan, heads.q, heads.k, heads.v, out);
  const Heads gradients = MakeHeads(c, false);
  AttentionBackward(plan, {heads.q, heads.k, heads.v, out}, logsumexp, at::ones_like(out),
                    {gradients.q, gradients.k, gradients.v});
  EXPECT_TRUE(gradients.q.eq(0).all().item<bool>());
  EXPECT_TRUE(gradients.k.eq(0).all().item<bool>());
}

TEST(Attention, RefusesShapesThatMeanNothing) {
  EXPECT_THROW(PlanFullAttention({1, 8, 4, 3}), c10::Error);
  EXPECT_THROW(PlanShiftedSparseAttention({1, 8, 4, 2}, 0), c10::Error);
  EXPECT_THROW(PlanFullAttention({1, 0, 4, 2}), c10::Error);
}

}  // namespace
}  // namespace longspan::trainer
