// Flash attention on the processor against the softmax formula in fp64, within twice the error of ATen's kernel.
#include "worker/trainer/attention/flash_cpu.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "tests/trainer/tiny_llama.h"

namespace longspan::trainer {
namespace {

struct Case {
  int64_t blocks = 1, query_heads = 1, key_value_heads = 1, length = 1, head_dim = 1;
  bool causal = true;
  int64_t prefix = 0;  // keys that every query also sees
  int64_t keys = 0;    // not causal: other than `length`
};

std::string Name(const Case& c) {
  std::string name;
  for (const int64_t value : {c.blocks, c.query_heads, c.key_value_heads, c.length, c.head_dim, c.prefix, c.keys}) {
    name += std::to_string(value) + " ";
  }
  return name + (c.causal ? "causal" : "whole");
}

// Everything that one call reads or writes; views of tensors that hold more.
struct Tensors {
  FlashQueries queries;
  std::vector<FlashKeys> keys;
  FlashQueryGradients gradients;
  std::vector<FlashKeyGradients> key_gradients;
};

// (blocks, heads, length, D) out of a (blocks·length, all heads, D) tensor, as a fused projection leaves it.
at::Tensor FusedView(const at::Tensor& rows, int64_t blocks, int64_t first_head, int64_t heads) {
  return rows.view({blocks, rows.size(0) / blocks, rows.size(1), rows.size(2)})
      .narrow(2, first_head, heads)
      .transpose(1, 2);
}

at::Tensor Random(at::IntArrayRef sizes, const std::string& name) {
  return at::empty(sizes, at::kFloat).normal_(0, 1, NamedGenerator(3, name));
}

Tensors MakeTensors(const Case& c) {
  Tensors t;
  const std::string name = Name(c);
  const int64_t heads = c.query_heads + 2 * c.key_value_heads;
  const auto run = [&](int64_t keys, bool causal, const std::string& run_name) {
    const at::Tensor fused = Random({c.blocks * keys, heads, c.head_dim}, run_name + name);
    const at::Tensor gradient = at::full_like(fused, NAN);
    const auto k = [&](const at::Tensor& x) { return FusedView(x, c.blocks, c.query_heads, c.key_value_heads); };
    const auto v = [&](const at::Tensor& x) {
      return FusedView(x, c.blocks, c.query_heads + c.key_value_heads, c.key_value_heads);
    };
    t.keys.push_back({k(fused), v(fused), causal});
    t.key_gradients.push_back({k(gradient), v(gradient)});
  };
  if (c.prefix > 0) run(c.prefix, false, "prefix");
  run(c.keys > 0 ? c.keys : c.length, c.causal, "own");
  const auto queries = [&](const at::Tensor& x) { return FusedView(x, c.blocks, 0, c.query_heads); };
  const at::Tensor fused = Random({c.blocks * c.length, heads, c.head_dim}, "q" + name);
  const at::Tensor out = at::full({c.blocks * c.length, c.query_heads, c.head_dim}, NAN);
  t.queries = {queries(fused), queries(out), at::full({c.blocks, c.query_heads, c.length}, NAN)};
  t.gradients = {queries(Random(out.sizes(), "dout" + name)), queries(at::full_like(fused, NAN))};
  return t;
}

FlashSetting Setting(const Case& c, FlashInstructions instructions) {
  return {at::full({FlashWorkspaceSize(c.head_dim, 2)}, NAN), instructions};
}

// The same by the formula, with autograd.
struct Reference {
  at::Tensor out, logsumexp, dq;
  std::vector<at::Tensor> dk, dv;
};

Reference ByFormula(const Case& c, const Tensors& t) {
  const auto leaf = [](const at::Tensor& x) { return x.to(at::kDouble).clone().requires_grad_(true); };
  const at::Tensor q = leaf(t.queries.q);
  std::vector<at::Tensor> k, v, scores, values;
  const int64_t repeats = c.query_heads / c.key_value_heads;
  for (const FlashKeys& run : t.keys) {
    k.push_back(leaf(run.k));
    v.push_back(leaf(run.v));
    at::Tensor run_scores = at::matmul(q, k.back().repeat_interleave(repeats, 1).transpose(2, 3)) /
                            std::sqrt(static_cast<double>(c.head_dim));
    if (run.causal) {
      run_scores = run_scores.masked_fill(at::ones({c.length, c.length}, at::kBool).tril().logical_not(), -INFINITY);
    }
    scores.push_back(run_scores);
    values.push_back(v.back().repeat_interleave(repeats, 1));
  }
  const at::Tensor all = at::cat(scores, 3);
  const at::Tensor out = at::matmul(at::softmax(all, -1), at::cat(values, 2));
  out.backward(t.gradients.out.to(at::kDouble));
  Reference reference{out.detach(), at::logsumexp(all, {-1}).detach(), q.grad(), {}, {}};
  for (size_t run = 0; run < k.size(); ++run) {
    reference.dk.push_back(k[run].grad());
    reference.dv.push_back(v[run].grad());
  }
  return reference;
}

struct Errors {
  double out = 0, logsumexp = 0, dq = 0, dk = 0, dv = 0;
};

// Root of the mean square, of the difference against the reference.
double ErrorOf(const at::Tensor& actual, const at::Tensor& reference) {
  const double difference = (actual.to(at::kDouble) - reference).square().mean().item<double>();
  const double size = reference.square().mean().item<double>();
  return size == 0 ? (difference == 0 ? 0.0 : 1e30) : std::sqrt(difference / size);
}

// What ATen's kernel reaches, over all keys as one run, under a mask where there is a prefix.
Errors ErrorsOfAten(const Case& c, const Tensors& t, const Reference& reference) {
  std::vector<at::Tensor> keys, values;
  for (const FlashKeys& run : t.keys) {
    keys.push_back(run.k);
    values.push_back(run.v);
  }
  const at::Tensor k = at::cat(keys, 2), v = at::cat(values, 2);
  const bool causal = c.causal && c.prefix == 0;
  std::optional<at::Tensor> mask;
  if (c.causal && !causal) {
    mask = at::zeros({c.length, k.size(2)})
               .masked_fill(at::ones({c.length, k.size(2)}, at::kBool).triu(c.prefix + 1), -INFINITY);
  }
  const auto [out, logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(t.queries.q, k, v, 0.0, causal, mask);
  const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(t.gradients.out, t.queries.q, k, v,
                                                                                     out, logsumexp, 0.0, causal, mask);
  return {ErrorOf(out, reference.out), ErrorOf(logsumexp, reference.logsumexp), ErrorOf(dq, reference.dq),
          ErrorOf(dk, at::cat(reference.dk, 2)), ErrorOf(dv, at::cat(reference.dv, 2))};
}

void RunBoth(const Tensors& t, const FlashSetting& setting) {
  FlashForward(t.queries, t.keys, setting);
  FlashBackward(t.queries, t.keys, t.gradients, t.key_gradients, setting);
}

// Twice ATen's error. Sums of few terms may be closer by luck than anyone can be: there, a few roundings.
Errors AllowedErrors(const Case& c, const Tensors& t, const Reference& reference) {
  constexpr double kEpsilon = 0x1p-23;
  const Errors aten = ErrorsOfAten(c, t, reference);
  Errors allowed{2 * aten.out, 2 * aten.logsumexp, 2 * aten.dq, 2 * aten.dk, 2 * aten.dv};
  if (std::min(c.length, t.keys.back().k.size(2)) < 15) {
    for (double Errors::* of : {&Errors::out, &Errors::logsumexp}) allowed.*of = std::max(allowed.*of, 4 * kEpsilon);
    for (double Errors::* of : {&Errors::dq, &Errors::dk, &Errors::dv}) {
      allowed.*of = std::max(allowed.*of, 8 * kEpsilon);
    }
  }
  return allowed;
}

void ExpectAgreesWithFormula(const Case& c, FlashInstructions instructions) {
  SCOPED_TRACE(Name(c) + " " + NameOf(instructions));
  const Tensors t = MakeTensors(c);
  RunBoth(t, Setting(c, instructions));
  const Reference reference = ByFormula(c, t);
  const Errors allowed = AllowedErrors(c, t, reference);
  EXPECT_LE(ErrorOf(t.queries.out, reference.out), allowed.out);
  EXPECT_LE(ErrorOf(t.queries.logsumexp, reference.logsumexp), allowed.logsumexp);
  if (c.causal && c.length == 1 && c.prefix == 0) {  // exactly, where the formula has rounding
    EXPECT_TRUE(t.gradients.q.eq(0).all().item<bool>());
    EXPECT_TRUE(t.key_gradients[0].k.eq(0).all().item<bool>());
    EXPECT_LE(ErrorOf(t.key_gradients[0].v, reference.dv[0]), allowed.dv);
    return;
  }
  EXPECT_LE(ErrorOf(t.gradients.q, reference.dq), allowed.dq);
  std::vector<at::Tensor> dk, dv;
  for (const FlashKeyGradients& run : t.key_gradients) {
    dk.push_back(run.k);
    dv.push_back(run.v);
  }
  EXPECT_LE(ErrorOf(at::cat(dk, 2), at::cat(reference.dk, 2)), allowed.dk);
  EXPECT_LE(ErrorOf(at::cat(dv, 2), at::cat(reference.dv, 2)), allowed.dv);
}

constexpr int64_t kLengths[] = {1, 2, 3, 5, 6, 7, 15, 16, 17, 63, 64, 65, 100, 128, 255, 256, 257, 300};
constexpr int64_t kHeadDims[] = {1, 6, 8, 16, 33, 64, 80, 96, 128, 200, 256};

class FlashCpu : public ::testing::TestWithParam<FlashInstructions> {};

INSTANTIATE_TEST_SUITE_P(All, FlashCpu, ::testing::ValuesIn(UsableFlashInstructions()),
                         [](const auto& info) { return info.param == FlashInstructions::kAvx2 ? "Avx2" : "Avx512"; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(FlashCpu);  // a machine without either

TEST_P(FlashCpu, AgreesWithTheFormulaForEveryLength) {
  for (const int64_t length : kLengths) {
    for (const int64_t head_dim : {6, 64}) ExpectAgreesWithFormula({2, 2, 2, length, head_dim}, GetParam());
  }
}

TEST_P(FlashCpu, AgreesWithTheFormulaForEveryHeadSize) {
  for (const int64_t head_dim : kHeadDims) {
    for (const int64_t length : {3, 70, 131}) ExpectAgreesWithFormula({1, 2, 1, length, head_dim}, GetParam());
  }
}

TEST_P(FlashCpu, AgreesWithTheFormulaForSharedKeyValueHeads) {
  for (const auto& [query_heads, key_value_heads] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {4, 2}, {6, 2}, {7, 1}, {3, 3}}) {
    for (const int64_t length : {1, 9, 80}) {
      ExpectAgreesWithFormula({3, query_heads, key_value_heads, length, 16}, GetParam());
    }
  }
}

TEST_P(FlashCpu, AgreesWithTheFormulaWhereEveryKeyIsSeen) {
  for (const int64_t length : {1, 7, 64, 90}) {
    for (const int64_t keys : {1, 5, 64, 65, 150}) {
      ExpectAgreesWithFormula({2, 4, 2, length, 24, false, 0, keys}, GetParam());
    }
  }
}

TEST_P(FlashCpu, AgreesWithTheFormulaBehindAPrefix) {
  for (const int64_t length : {1, 7, 64, 90}) {
    for (const int64_t prefix : {1, 5, 64, 65, 150}) {
      ExpectAgreesWithFormula({2, 4, 2, length, 24, true, prefix}, GetParam());
    }
  }
}

TEST_P(FlashCpu, AgreesWithTheFormulaOverALongSequence) { ExpectAgreesWithFormula({1, 1, 1, 2049, 64}, GetParam()); }

TEST_P(FlashCpu, AddsWhereAsked) {
  const Case c{2, 4, 2, 70, 20, true, 9};
  for (const bool adds : {false, true}) {
    const Tensors once = MakeTensors(c);
    RunBoth(once, Setting(c, GetParam()));
    Tensors t = MakeTensors(c);
    t.gradients.adds = adds;
    t.gradients.q.fill_(1);
    for (FlashKeyGradients& run : t.key_gradients) {
      run.adds = adds;
      run.k.fill_(2);
      run.v.fill_(3);
    }
    RunBoth(t, Setting(c, GetParam()));
    const auto check = [&](const at::Tensor& actual, const at::Tensor& expected, double before) {
      EXPECT_LT(testing::RelativeError(actual, expected + (adds ? before : 0.0)), 1e-6);
    };
    check(t.gradients.q, once.gradients.q, 1);
    for (size_t run = 0; run < t.keys.size(); ++run) {
      check(t.key_gradients[run].k, once.key_gradients[run].k, 2);
      check(t.key_gradients[run].v, once.key_gradients[run].v, 3);
    }
  }
}

std::vector<at::Tensor> Results(const Tensors& t) {
  std::vector<at::Tensor> results = {t.queries.out, t.queries.logsumexp, t.gradients.q};
  for (const FlashKeyGradients& run : t.key_gradients) results.insert(results.end(), {run.k, run.v});
  return results;
}

TEST_P(FlashCpu, DoesNotDependOnTheNumberOfThreads) {
  for (const Case& c : {Case{1, 2, 1, 300, 33}, Case{5, 4, 2, 65, 16, true, 10}, Case{4000, 2, 2, 4, 8}}) {
    const int threads = at::get_num_threads();
    at::set_num_threads(1);
    const Tensors one = MakeTensors(c);
    RunBoth(one, Setting(c, GetParam()));
    at::set_num_threads(4);
    const Tensors many = MakeTensors(c);
    RunBoth(many, {at::empty({FlashWorkspaceSize(c.head_dim, 4)}), GetParam()});
    at::set_num_threads(threads);
    for (size_t i = 0; i < Results(one).size(); ++i) {
      EXPECT_TRUE(Results(one)[i].equal(Results(many)[i])) << Name(c) << " result " << i;
    }
  }
}

TEST_P(FlashCpu, ABlockDoesNotDependOnItsPlaceInTheBatch) {
  const Case c{3, 4, 2, 101, 33, true, 13};
  const Tensors all = MakeTensors(c);
  RunBoth(all, Setting(c, GetParam()));
  for (int64_t block = 0; block < c.blocks; ++block) {
    // Contiguous copies: other strides and other alignment.
    const auto own = [block](const at::Tensor& x) { return x.narrow(0, block, 1).contiguous(); };
    Tensors t;
    t.queries = {own(all.queries.q), at::empty_like(own(all.queries.out)), at::empty_like(own(all.queries.logsumexp))};
    t.gradients = {own(all.gradients.out), at::empty_like(t.queries.q)};
    for (const FlashKeys& run : all.keys) {
      t.keys.push_back({own(run.k), own(run.v), run.causal});
      t.key_gradients.push_back({at::empty_like(t.keys.back().k), at::empty_like(t.keys.back().v)});
    }
    RunBoth(t, Setting(c, GetParam()));
    for (size_t i = 0; i < Results(t).size(); ++i) {
      EXPECT_TRUE(Results(t)[i].equal(own(Results(all)[i]))) << "block " << block << " result " << i;
    }
  }
}

TEST_P(FlashCpu, ATokenDoesNotDependOnLaterOnes) {
  const Case c{1, 1, 1, 200, 32};
  const Tensors whole = MakeTensors(c);
  FlashForward(whole.queries, whole.keys, Setting(c, GetParam()));
  for (const int64_t length : {1, 6, 63, 64, 65, 130}) {
    const auto own = [length](const at::Tensor& x) { return x.narrow(2, 0, length); };
    const FlashQueries queries{own(whole.queries.q), at::empty({1, 1, length, c.head_dim}), at::empty({1, 1, length})};
    FlashForward(queries, {{own(whole.keys[0].k), own(whole.keys[0].v), true}}, Setting(c, GetParam()));
    EXPECT_TRUE(queries.out.equal(own(whole.queries.out))) << length;
    EXPECT_TRUE(queries.logsumexp.equal(own(whole.queries.logsumexp))) << length;
  }
}

TEST_P(FlashCpu, AQueryThatSeesOneKeyGivesItsValueExactlyAndMovesNothingElse) {
  const Case c{1, 4, 2, 70, 80};
  const Tensors t = MakeTensors(c);
  t.gradients.out.narrow(2, 1, 69).zero_();  // only the first token is asked
  RunBoth(t, Setting(c, GetParam()));
  EXPECT_TRUE(t.queries.out.select(2, 0).equal(t.keys[0].v.select(2, 0).repeat_interleave(2, 1)));
  EXPECT_TRUE(t.gradients.q.eq(0).all().item<bool>());
  EXPECT_TRUE(t.key_gradients[0].k.eq(0).all().item<bool>());
}

TEST_P(FlashCpu, HugeScoresGiveTheLargestItsWholeWeight) {
  const Case c{1, 1, 1, 40, 16};
  const Tensors t = MakeTensors(c);
  t.queries.q.mul_(1e4);
  RunBoth(t, Setting(c, GetParam()));
  const Reference reference = ByFormula(c, t);
  EXPECT_LT(ErrorOf(t.queries.out, reference.out), 1e-5);
  for (const at::Tensor& result : Results(t)) EXPECT_TRUE(result.isfinite().all().item<bool>());
}

TEST_P(FlashCpu, NotANumberGoesThrough) {
  const Case c{1, 1, 1, 40, 16};
  const Tensors t = MakeTensors(c);
  t.keys[0].k.select(2, 20).fill_(NAN);
  RunBoth(t, Setting(c, GetParam()));
  EXPECT_TRUE(t.queries.out.narrow(2, 0, 20).isfinite().all().item<bool>());
  EXPECT_TRUE(t.queries.out.narrow(2, 20, 20).isnan().all().item<bool>());
}

TEST_P(FlashCpu, RefusesWhatDoesNotFit) {
  const Case c{1, 4, 2, 8, 16};
  const Tensors t = MakeTensors(c);
  const FlashSetting setting = Setting(c, GetParam());
  EXPECT_THROW(FlashForward(t.queries, t.keys, {at::empty({10}), GetParam()}), c10::Error);
  EXPECT_THROW(FlashForward(t.queries, {}, setting), c10::Error);
  FlashQueries queries = t.queries;
  queries.q = queries.q.to(at::kBFloat16);
  EXPECT_THROW(FlashForward(queries, t.keys, setting), c10::Error);
  queries = t.queries;
  queries.out = at::empty({1, 4, 16, 8}).transpose(2, 3);
  EXPECT_THROW(FlashForward(queries, t.keys, setting), c10::Error);
  const FlashKeys longer{at::zeros({1, 2, 9, 16}), at::zeros({1, 2, 9, 16}), true};
  EXPECT_THROW(FlashForward(t.queries, {longer}, setting), c10::Error);
}

}  // namespace
}  // namespace longspan::trainer
