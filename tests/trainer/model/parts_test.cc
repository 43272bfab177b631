// The parts of a layer against autograd over plain tensor operations.
#include <gtest/gtest.h>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/adapters/fused_linear.h"
#include "worker/trainer/model/layer_norm.h"
#include "worker/trainer/model/mlp_activation.h"
#include "worker/trainer/model/row_kernels.h"
#include "worker/trainer/model/token_loss.h"

namespace longspan::trainer {
namespace {

using testing::RelativeError;

at::Tensor Draw(at::IntArrayRef shape, const std::string& name) {
  return at::empty(shape).normal_(0, 1, NamedGenerator(1, name));
}
at::Tensor Leaf(const at::Tensor& value) { return value.clone().requires_grad_(true); }

TEST(RmsNorm, ForwardAndBackwardAgreeWithAutograd) {
  for (const int64_t rows : {1, 15, 40}) {
    const at::Tensor x = Draw({rows, 23}, "x"), weight = Draw({23}, "w"), dy = Draw({rows, 23}, "dy");
    const at::Tensor xl = Leaf(x), wl = Leaf(weight);
    const at::Tensor expected = xl * (xl.pow(2).mean(1, true) + 1e-5).rsqrt() * wl;
    expected.backward(dy);
    const at::Tensor out = at::empty_like(x), inverse_rms = at::empty({rows}), dx = at::ones_like(x),
                     dw = at::ones({23});
    RmsNorm(x, weight, 1e-5, out, inverse_rms);
    RmsNormBackward(x, weight, inverse_rms, dy, dx, {dw});
    EXPECT_LT(RelativeError(out, expected.detach()), 1e-6);
    EXPECT_LT(RelativeError(dx - 1, xl.grad()), 1e-5);
    EXPECT_LT(RelativeError(dw - 1, wl.grad()), 1e-5);
  }
}

TEST(HeadRmsNorm, ForwardAndBackwardAgreeWithAutogradOnViews) {
  for (const int64_t rows : {1, 15, 40}) {
    const at::Tensor fused = Draw({rows, 7, 10}, "heads"), x = fused.narrow(1, 2, 3), weight = Draw({10}, "w");
    const at::Tensor dy = Draw({rows, 5, 10}, "dy").narrow(1, 1, 3);
    const at::Tensor xl = Leaf(x), wl = Leaf(weight);
    const at::Tensor expected = xl * (xl.pow(2).mean(2, true) + 1e-5).rsqrt() * wl;
    expected.backward(dy.clone());
    const at::Tensor out = at::empty({rows, 3, 10}), inverse_rms = at::empty({rows, 3}), dw = at::ones({10});
    HeadRmsNorm(x, weight, 1e-5, out, inverse_rms);
    HeadRmsNormBackward(x, weight, inverse_rms, dy, {dw});
    EXPECT_LT(RelativeError(out, expected.detach()), 1e-6);
    EXPECT_LT(RelativeError(dy, xl.grad()), 1e-5);
    EXPECT_LT(RelativeError(dw - 1, wl.grad()), 1e-5);
  }
}

TEST(LayerNorm, ForwardAndBackwardAgreeWithAutograd) {
  for (const int64_t rows : {1, 15, 40}) {
    const at::Tensor x = Draw({rows, 23}, "x") + 3, weight = Draw({23}, "w"), bias = Draw({23}, "b");
    const at::Tensor dy = Draw({rows, 23}, "dy");
    const at::Tensor xl = Leaf(x), wl = Leaf(weight), bl = Leaf(bias);
    const at::Tensor centred = xl - xl.mean(1, true);
    const at::Tensor expected = centred * (centred.pow(2).mean(1, true) + 1e-5).rsqrt() * wl + bl;
    expected.backward(dy);
    const at::Tensor out = at::empty_like(x), statistics = at::empty({rows, 2}), dx = at::ones_like(x);
    const at::Tensor dw = at::ones({23}), db = at::ones({23});
    LayerNorm(x, {weight, bias, 1e-5}, out, statistics);
    LayerNormBackward(x, weight, statistics, dy, {dx, dw, db});
    EXPECT_LT(RelativeError(out, expected.detach()), 1e-6);
    EXPECT_LT(RelativeError(dx - 1, xl.grad()), 1e-5);
    EXPECT_LT(RelativeError(dw - 1, wl.grad()), 1e-5);
    EXPECT_LT(RelativeError(db - 1, bl.grad()), 1e-5);
  }
}

TEST(MlpActivation, ForwardAndBackwardOfBothGelusAgreeWithAutograd) {
  for (const auto& [kind, approximation] : {std::pair{Activation::kGelu, "none"}, {Activation::kGeluTanh, "tanh"}}) {
    const at::Tensor inner = Draw({9, 13}, "inner") * 3, dy = Draw({9, 13}, "dy"), leaf = Leaf(inner);
    const at::Tensor expected = at::gelu(leaf, approximation);
    expected.backward(dy);
    const at::Tensor out = at::empty_like(inner), gradient = at::empty_like(inner);
    Arena arena;
    const MlpActivation activation(kind, inner, arena);
    activation.Forward(out);
    activation.Backward(dy, gradient);
    EXPECT_LT(RelativeError(out, expected.detach()), 1e-6);
    EXPECT_LT(RelativeError(gradient, leaf.grad()), 1e-5);
  }
}

TEST(SiluProduct, ForwardAndBackwardAgreeWithAutograd) {
  const at::Tensor gate_up = Draw({9, 26}, "gu"), dy = Draw({9, 13}, "dy");
  const at::Tensor leaf = Leaf(gate_up);
  const at::Tensor expected = at::silu(leaf.narrow(1, 0, 13)) * leaf.narrow(1, 13, 13);
  expected.backward(dy);
  const at::Tensor sigmoid = at::sigmoid(gate_up.narrow(1, 0, 13)), out = at::empty({9, 13}),
                   gradient = at::empty({9, 26});
  SiluProduct(gate_up, sigmoid, out);
  SiluProductBackward(gate_up, sigmoid, dy, gradient);
  EXPECT_LT(RelativeError(out, expected.detach()), 1e-6);
  EXPECT_LT(RelativeError(gradient, leaf.grad()), 1e-5);
}

TEST(Rotation, TurningBackUndoesIt) {
  const at::Tensor angles = Draw({5, 3}, "angles"), rows = Draw({10, 4, 6}, "rows"), turned = rows.clone();
  const Rotation rotation{at::cos(angles), at::sin(angles), 5};
  ApplyRotation(turned, rotation, false);
  EXPECT_GT(RelativeError(turned, rows), 1e-2);
  const at::Tensor low = rows[8].narrow(1, 0, 3), high = rows[8].narrow(1, 3, 3);  // row 8 has position 3
  EXPECT_LT(RelativeError(turned[8].narrow(1, 0, 3), low * at::cos(angles[3]) - high * at::sin(angles[3])), 1e-6);
  EXPECT_LT(RelativeError(turned[8].narrow(1, 3, 3), high * at::cos(angles[3]) + low * at::sin(angles[3])), 1e-6);
  ApplyRotation(turned, rotation, true);
  EXPECT_LT(RelativeError(turned, rows), 1e-6);
}

TEST(Rotation, RowsTurnByThePositionsGiven) {
  const at::Tensor angles = Draw({5, 3}, "angles"), rows = Draw({6, 4, 6}, "rows");
  const at::Tensor packed = rows.clone(), first = rows.narrow(0, 0, 4).clone(), second = rows.narrow(0, 4, 2).clone();
  Rotation rotation{at::cos(angles), at::sin(angles), 5};
  ApplyRotation(first, rotation, false);
  ApplyRotation(second, rotation, false);
  rotation.positions = at::tensor({0, 1, 2, 3, 0, 1}, at::kLong);
  ApplyRotation(packed, rotation, false);
  EXPECT_TRUE(at::equal(packed, at::cat({first, second})));
  rotation.positions = at::tensor({0, 1}, at::kLong);
  EXPECT_THROW(ApplyRotation(packed, rotation, false), c10::Error);
}

TEST(TokenLoss, TheFirstTokenOfADocumentIsNoTarget) {
  const at::Tensor labels = at::arange(10, at::kLong).view({2, 5});
  const at::Tensor documents = at::tensor({4, 4, 9, 9, 4, 1, 1, 1, 1, 1}, at::kLong).view({2, 5});
  EXPECT_TRUE(
      at::equal(ShiftedTargets(labels, documents), at::tensor({1, -100, 3, -100, -100, 6, 7, 8, 9, -100}, at::kLong)));
  EXPECT_TRUE(at::equal(ShiftedTargets(labels, {}), at::tensor({1, 2, 3, 4, -100, 6, 7, 8, 9, -100}, at::kLong)));
}

TEST(Rotation, ATableForAPartOfAHeadLeavesTheRest) {
  const at::Tensor angles = Draw({5, 2}, "angles"), rows = Draw({5, 3, 6}, "rows"), turned = rows.clone();
  ApplyRotation(turned, {at::cos(angles), at::sin(angles), 5}, false);
  const at::Tensor part = rows.narrow(2, 0, 4).clone();
  ApplyRotation(part, {at::cos(angles), at::sin(angles), 5}, false);
  EXPECT_TRUE(at::equal(turned.narrow(2, 0, 4), part));
  EXPECT_TRUE(at::equal(turned.narrow(2, 4, 2), rows.narrow(2, 4, 2)));
  EXPECT_THROW(ApplyRotation(at::zeros({5, 3, 3}), {at::cos(angles), at::sin(angles), 5}, false), c10::Error);
}

TEST(TokenLoss, LossAndGradientsAgreeWithAutogradForEveryTileAndMask) {
  const at::Tensor hidden = Draw({30, 8}, "hidden"), head = Draw({17, 8}, "head") * 3;
  NormWeight norm;
  norm.value = Draw({8}, "norm");
  at::Tensor labels = testing::RandomIds(2, 15, 17);
  for (const int64_t ignored_every : {0, 3}) {
    if (ignored_every != 0) {
      for (int64_t t = 0; t < 15; t += ignored_every) labels[1][t] = kIgnoredLabel;
    }
    const at::Tensor targets = ShiftedTargets(labels, {});
    const at::Tensor hl = Leaf(hidden), wl = Leaf(head), nl = Leaf(norm.value);
    const at::Tensor rows = at::nonzero(targets.ne(kIgnoredLabel)).view({-1});
    const at::Tensor normed = hl * (hl.pow(2).mean(1, true) + 1e-5).rsqrt() * nl;
    const at::Tensor scores = at::log_softmax(at::mm(normed, wl.t()), 1).index_select(0, rows);
    const at::Tensor loss = -scores.gather(1, targets.index_select(0, rows).unsqueeze(1)).sum();
    loss.backward();
    for (const int64_t tile : {1, 4, 7, 100}) {
      const at::Tensor dh = at::full_like(hidden, NAN), dw = at::zeros_like(head);
      norm.gradient = at::zeros({8});
      Arena arena;
      const LossSum sum = TiledTokenLoss({hidden, norm, 1e-5, head, targets}, tile, {dh, dw}, arena);
      EXPECT_EQ(sum.tokens, rows.size(0));
      EXPECT_NEAR(sum.loss, loss.item<double>(), 1e-4);
      EXPECT_LT(RelativeError(dh, hl.grad()), 1e-5);
      EXPECT_LT(RelativeError(dw, wl.grad()), 1e-5);
      EXPECT_LT(RelativeError(norm.gradient, nl.grad()), 1e-5);
    }
  }
}

TEST(TokenLoss, AVeryUnlikelyTokenHasAFiniteLoss) {
  const at::Tensor hidden = at::ones({2, 1}), head = at::zeros({3, 1});
  head[1] = 400;
  const at::Tensor targets = ShiftedTargets(at::zeros({1, 2}, at::kLong), {});
  NormWeight norm;
  norm.value = at::ones({1});
  Arena arena;
  EXPECT_NEAR(TiledTokenLoss({hidden, norm, 0, head, targets}, 8, {}, arena).loss, 400, 1e-3);
}

FusedLinear MakeLinear(at::ScalarType dtype = at::kFloat) {
  FusedLinear linear;
  linear.weight = Draw({11, 7}, "weight").to(dtype);
  linear.dtype = dtype;
  linear.weight_gradient = at::zeros({11, 7});
  linear.bias = Draw({11}, "bias").to(dtype);
  linear.bias_gradient = at::zeros({11});
  int64_t first = 0;
  for (const int64_t outputs : {4, 5, 2}) {
    LinearPart part;
    part.module_index = first;
    part.first_output = first;
    part.outputs = outputs;
    const std::string name = std::to_string(first);
    if (outputs != 5) {                           // the middle one has no LoRA
      const int64_t rank = outputs == 4 ? 2 : 3;  // each part has its own rank and scale
      part.lora = LoraFactors{Draw({rank, 7}, name + "a").to(dtype), Draw({outputs, rank}, name + "b").to(dtype),
                              at::zeros({rank, 7}), at::zeros({outputs, rank}), outputs == 4 ? 1.5 : 0.25};
    }
    linear.parts.push_back(part);
    first += outputs;
  }
  linear.Refresh();
  return linear;
}

void ExpectAgreesWithAutograd(const DropoutPass& dropout) {
  const FusedLinear linear = MakeLinear();
  const at::Tensor x = Draw({6, 7}, "x"), dy = Draw({6, 11}, "dy");
  const at::Tensor xl = Leaf(x), wl = Leaf(linear.weight), bl = Leaf(linear.bias);
  at::Tensor expected = at::mm(xl, wl.t()) + bl;
  std::vector<std::pair<at::Tensor, at::Tensor>> factors;
  std::vector<at::Tensor> updates;
  for (const LinearPart& part : linear.parts) {
    at::Tensor mask = at::ones_like(x);
    if (dropout.active()) ApplyDropout(dropout, {3, part.module_index, 0}, at::ones_like(x), mask);
    if (!part.lora) {
      updates.push_back(at::zeros({6, part.outputs}));
      continue;
    }
    const at::Tensor a = Leaf(part.lora->a), b = Leaf(part.lora->b);
    factors.emplace_back(a, b);
    updates.push_back(at::mm(at::mm(xl * mask, a.t()), b.t()) * part.lora->scale);
  }
  expected = expected + at::cat(updates, 1);
  expected.backward(dy);

  Arena arena;
  const auto pass = linear.Begin({true, &dropout, 3}, arena);
  const at::Tensor y = at::empty({6, 11}), dx = at::empty({6, 7});
  linear.Forward(pass, x, 0, y);
  linear.Backward(pass, x, dy, 0, dx);
  EXPECT_LT(RelativeError(y, expected.detach()), 1e-5);
  EXPECT_LT(RelativeError(dx, xl.grad()), 1e-5);
  EXPECT_LT(RelativeError(linear.weight_gradient, wl.grad()), 1e-5);
  EXPECT_LT(RelativeError(linear.bias_gradient, bl.grad()), 1e-5);
  size_t next = 0;
  for (const LinearPart& part : linear.parts) {
    if (!part.lora) continue;
    EXPECT_LT(RelativeError(part.lora->a_gradient, factors[next].first.grad()), 1e-5);
    EXPECT_LT(RelativeError(part.lora->b_gradient, factors[next].second.grad()), 1e-5);
    ++next;
  }
}

TEST(FusedLinear, AgreesWithAutograd) { ExpectAgreesWithAutograd({}); }

TEST(FusedLinear, AgreesWithAutogradUnderDropout) { ExpectAgreesWithAutograd({0.4, 1, 2, 0, 3}); }

TEST(FusedLinear, WithoutItsAdapterIsTheWeightAlone) {
  const FusedLinear linear = MakeLinear();
  const at::Tensor x = Draw({6, 7}, "x"), y = at::empty({6, 11});
  Arena arena;
  linear.Forward(linear.Begin({.adapted = false}, arena), x, 0, y);
  EXPECT_TRUE(at::equal(y, at::addmm(linear.bias, x, linear.weight.t())));
}

TEST(Dropout, KeepsTheRightShareAndScalesIt) {
  const at::Tensor out = at::empty({200, 100});
  ApplyDropout({0.25, 1, 2, 3, 100}, {0, 0, 0}, at::ones({200, 100}), out);
  EXPECT_NEAR(out.ne(0).to(at::kFloat).mean().item<double>(), 0.75, 0.01);
  EXPECT_NEAR(out.max().item<double>(), 1 / 0.75, 1e-6);
  EXPECT_NEAR(out.mean().item<double>(), 1.0, 0.02);
}

TEST(Dropout, AMaskOfATileIsThatPartOfTheWholeMask) {
  const DropoutPass pass{0.5, 1, 2, 3, 10};
  const at::Tensor ones = at::ones({20, 9}), whole = at::empty_like(ones), tile = at::empty({7, 9});
  ApplyDropout(pass, {4, 5, 0}, ones, whole);
  ApplyDropout(pass, {4, 5, 8}, at::ones({7, 9}), tile);
  EXPECT_TRUE(at::equal(tile, whole.narrow(0, 8, 7)));
  const at::Tensor other = at::empty_like(ones);
  ApplyDropout(pass, {4, 6, 0}, ones, other);
  EXPECT_FALSE(at::equal(other, whole));
}

}  // namespace
}  // namespace longspan::trainer
