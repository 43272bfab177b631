// The references of kernels/ against what the trainer computes on a CPU: what a GPU kernel is held to is the trainer's
// own arithmetic.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "kernels/adamw/adamw.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/dropout/dropout.h"
#include "kernels/embedding_gradient/embedding_gradient.h"
#include "kernels/fp8_rows/fp8_rows.h"
#include "kernels/lora_products/lora_products.h"
#include "kernels/norm/norm.h"
#include "kernels/rope/rope.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/tensor_sums/tensor_sums.h"
#include "worker/trainer/adapters/dropout.h"
#include "worker/trainer/adapters/lora_products.h"
#include "worker/trainer/model/layer_norm.h"
#include "worker/trainer/model/norm.h"
#include "worker/trainer/model/row_kernels.h"
#include "worker/trainer/model/row_sums.h"
#include "worker/trainer/optim/adamw.h"

namespace longspan::trainer {
namespace {

using kernels::ElementType;

class KernelReferencesTest : public ::testing::TestWithParam<ElementType> {
 protected:
  KernelReferencesTest() { at::manual_seed(5); }
  at::ScalarType dtype() const { return GetParam() == ElementType::kFloat32 ? at::kFloat : at::kBFloat16; }
  at::Tensor Random(at::IntArrayRef sizes) const { return at::randn(sizes).to(dtype()); }
  // Sums are taken in another order; in bf16 a value may round the other way.
  void ExpectEqual(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) const {
    const double tolerance = expected.scalar_type() == at::kFloat ? 2e-6 : 1.0 / 128;
    const at::Tensor wanted = expected.to(at::kDouble);
    const double difference = (actual.to(at::kDouble) - wanted).abs().max().item<double>();
    EXPECT_LE(difference, tolerance * wanted.abs().max().item<double>()) << what;
  }
};

kernels::norm::View ViewOf(const at::Tensor& heads) { return {heads.data_ptr(), heads.stride(0), heads.stride(1)}; }

TEST_P(KernelReferencesTest, Norms) {
  const at::Tensor rows = Random({6, 5, 20}), gradient = Random({6, 3, 16}), weight = Random({16}), bias = Random({16});
  const at::Tensor x = rows.narrow(1, 1, 3).narrow(2, 0, 16);  // heads inside wider rows
  {
    at::Tensor out = Random({6, 3, 16}), inverse = at::zeros({6, 3});
    HeadRmsNorm(x, weight, 1e-5, out, inverse);
    const at::Tensor out2 = at::zeros_like(out), inverse2 = at::zeros_like(inverse);
    kernels::norm::ForwardReference({GetParam(),
                                     kernels::norm::Kind::kRms,
                                     {6, 3, 16},
                                     ViewOf(x),
                                     {},
                                     weight.data_ptr(),
                                     nullptr,
                                     1e-5f,
                                     ViewOf(out2),
                                     inverse2.data_ptr<float>(),
                                     3});
    ExpectEqual(out2, out, "forward");
    ExpectEqual(inverse2, inverse, "statistics");
    const at::Tensor in_place = gradient.clone(), in_place2 = gradient.clone();
    const at::Tensor sum = at::ones({16}), sum2 = at::ones({16});
    HeadRmsNormBackward(x, weight, inverse, in_place, {sum});
    kernels::norm::BackwardReference({GetParam(),
                                      kernels::norm::Kind::kRms,
                                      {6, 3, 16},
                                      ViewOf(x),
                                      weight.data_ptr(),
                                      inverse.data_ptr<float>(),
                                      3,
                                      ViewOf(gradient),
                                      ViewOf(in_place2),
                                      /*adds=*/false,
                                      1,
                                      sum2.data_ptr<float>(),
                                      sum2.data_ptr<float>()});
    ExpectEqual(in_place2, in_place, "gradient of heads");
    ExpectEqual(sum2, sum, "gradient of the weight");
  }
  const at::Tensor flat = Random({7, 16}), dy = Random({7, 16}), start = Random({7, 16});
  {
    at::Tensor out = at::zeros_like(flat), out2 = at::zeros_like(flat), statistics = at::zeros({7, 2});
    const at::Tensor statistics2 = at::zeros({7, 2});
    LayerNorm(flat, {weight, bias, 1e-5}, out, statistics);
    const auto view = [](const at::Tensor& all) { return kernels::norm::View{all.data_ptr(), all.stride(0), 0}; };
    kernels::norm::ForwardReference({GetParam(),
                                     kernels::norm::Kind::kLayer,
                                     {7, 1, 16},
                                     view(flat),
                                     {},
                                     weight.data_ptr(),
                                     bias.data_ptr(),
                                     1e-5f,
                                     view(out2),
                                     statistics2.data_ptr<float>(),
                                     1});
    ExpectEqual(out2, out, "layer norm");
    ExpectEqual(statistics2, statistics, "its statistics");
    const at::Tensor dx = start.clone(), dx2 = start.clone();
    const at::Tensor dw = at::ones({16}), dw2 = at::ones({16}), db = at::ones({16}), db2 = at::ones({16});
    LayerNormBackward(flat, weight, statistics, dy, {dx, dw, db});
    kernels::norm::BackwardReference({GetParam(),
                                      kernels::norm::Kind::kLayer,
                                      {7, 1, 16},
                                      view(flat),
                                      weight.data_ptr(),
                                      statistics.data_ptr<float>(),
                                      1,
                                      view(dy),
                                      view(dx2),
                                      /*adds=*/true,
                                      1,
                                      dw2.data_ptr<float>(),
                                      dw2.data_ptr<float>(),
                                      db2.data_ptr<float>()});
    ExpectEqual(dx2, dx, "gradient of layer norm");
    ExpectEqual(dw2, dw, "of its weight");
    ExpectEqual(db2, db, "of its bias");
  }
}

// The layer's residual: x += added, rounded, and the norm of that.
TEST_P(KernelReferencesTest, NormsOfASum) {
  const at::Tensor x = Random({7, 16}), added = Random({7, 16});
  for (const NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
    NormWeight norm;
    norm.kind = kind;
    norm.value = Random({16});
    if (kind == NormKind::kLayer) norm.bias = Random({16});
    const at::Tensor sum = x.clone(), out = at::zeros_like(x), statistics = at::zeros({7, 2});
    AddAndNormalise(norm, 1e-5, sum, added, out, statistics);
    const at::Tensor sum2 = x.clone(), out2 = at::zeros_like(x), statistics2 = at::zeros({7, 2});
    const auto view = [](const at::Tensor& all) { return kernels::norm::View{all.data_ptr(), all.stride(0), 0}; };
    kernels::norm::ForwardReference({GetParam(),
                                     kind == NormKind::kRms ? kernels::norm::Kind::kRms : kernels::norm::Kind::kLayer,
                                     {7, 1, 16},
                                     view(sum2),
                                     view(added),
                                     norm.value.data_ptr(),
                                     norm.bias.defined() ? norm.bias.data_ptr() : nullptr,
                                     1e-5f,
                                     view(out2),
                                     statistics2.data_ptr<float>(),
                                     1});
    EXPECT_TRUE(at::equal(sum2, sum));
    ExpectEqual(out2, out, "norm of the sum");
    ExpectEqual(statistics2, statistics, "its statistics");
  }
}

TEST_P(KernelReferencesTest, Rotation) {
  const at::Tensor cosine = at::randn({9, 4}), sine = at::randn({9, 4});
  const at::Tensor positions = at::arange(12, at::kLong).mul(5).remainder(9);
  for (const bool inverse : {false, true}) {
    for (const bool by_positions : {false, true}) {
      const at::Tensor all = Random({12, 5, 10}), all2 = all.clone();
      const auto heads = [](const at::Tensor& rows) { return rows.narrow(1, 1, 3); };
      ApplyRotation(heads(all), {cosine, sine, 9, by_positions ? positions : at::Tensor()}, inverse);
      kernels::rope::RotateReference({GetParam(), 12, 3, 4, heads(all2).data_ptr(), all2.stride(0), all2.stride(1),
                                      cosine.data_ptr<float>(), sine.data_ptr<float>(), 4, 9,
                                      by_positions ? positions.data_ptr<int64_t>() : nullptr, inverse});
      ExpectEqual(all2, all, "rows and what lies between them");
    }
  }
}

TEST_P(KernelReferencesTest, SiluProduct) {
  const at::Tensor gate_up = Random({5, 22}).mul(3), dy = Random({5, 11});
  const at::Tensor sigmoid = gate_up.narrow(1, 0, 11).to(at::kFloat).sigmoid();
  const at::Tensor out = Random({5, 11}), out2 = at::zeros_like(out);
  SiluProduct(gate_up, sigmoid, out);
  kernels::swiglu::ForwardReference({GetParam(), 5, 11, gate_up.data_ptr(), 22, out2.data_ptr(), 11});
  ExpectEqual(out2, out, "forward");
  const at::Tensor gradient = at::zeros_like(gate_up), gradient2 = at::zeros_like(gate_up);
  SiluProductBackward(gate_up, sigmoid, dy, gradient);
  kernels::swiglu::BackwardReference(
      {GetParam(), 5, 11, gate_up.data_ptr(), 22, dy.data_ptr(), 11, gradient2.data_ptr(), 22});
  ExpectEqual(gradient2, gradient, "backward");
}

TEST_P(KernelReferencesTest, CrossEntropy) {
  const at::Tensor logits = Random({6, 33}).mul(4), gradient = logits.clone();
  const at::Tensor targets = at::arange(6, at::kLong).mul(5), loss = at::zeros({6}, at::kDouble);
  kernels::cross_entropy::LossReference(
      {GetParam(), 6, 33, gradient.data_ptr(), 33, targets.data_ptr<int64_t>(), loss.data_ptr<double>(), true});
  const at::Tensor exact = logits.to(at::kDouble), probabilities = exact.softmax(1);
  const at::Tensor expected = at::cross_entropy_loss(exact, targets, {}, at::Reduction::None);
  EXPECT_LE((loss - expected).abs().max().item<double>(), 1e-12);
  for (int64_t row = 0; row < 6; ++row) probabilities[row][targets[row].item<int64_t>()] -= 1.0;
  ExpectEqual(gradient, probabilities.to(dtype()), "gradient");
}

TEST_P(KernelReferencesTest, Sums) {
  const at::Tensor x = Random({6, 10}), sum = at::randn({10, 6}), sum2 = sum.clone();
  AddScaled(x.t(), 1.5, sum);
  kernels::tensor_sums::AddScaledReference(
      {GetParam(), 10, 6, x.data_ptr(), 1, 10, sum2.data_ptr<float>(), 6, 1, 1.5f});
  ExpectEqual(sum2, sum, "scaled");
  const at::Tensor columns = at::randn({10}), columns2 = columns.clone(), work = at::zeros({16, 10});
  AddColumnSums(x, columns, work);
  kernels::tensor_sums::ColumnSumsReference(
      {GetParam(), 6, 10, x.data_ptr(), 10, 16, work.data_ptr<float>(), columns2.data_ptr<float>()});
  ExpectEqual(columns2, columns, "columns");
  const kernels::tensor_sums::Span span{sum.data_ptr<float>(), 60};
  EXPECT_NEAR(kernels::tensor_sums::SquaredNormReference(&span, 1), SumOfSquares(sum), 1e-9);
  const at::Tensor ids = at::tensor({3, 1, 3, 0, 1, 3}, at::kLong), table = at::randn({4, 10}), table2 = table.clone();
  AddRows(ids, x, table);
  const auto [sorted, order] = ids.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  kernels::embedding_gradient::AddReference({GetParam(), 6, 10, sorted.data_ptr<int64_t>(), order.data_ptr<int64_t>(),
                                             x.data_ptr(), 10, table2.data_ptr<float>(), 10});
  EXPECT_TRUE(at::equal(table2, table)) << "rows of an id come in order";
}

TEST_P(KernelReferencesTest, DropoutHasTheSameMask) {
  const at::Tensor x = Random({9, 14}), out = at::zeros_like(x), out2 = at::zeros_like(x);
  const DropoutPass pass{0.3, 17, 4, 6, 5, 10};
  const DropoutSite site{2, 3, 8};
  ApplyDropout(pass, site, x, out);
  kernels::dropout::Arguments arguments{GetParam(), 9, 14, pass.seed, pass.step, pass.first_sequence_index};
  arguments.layer = site.layer;
  arguments.module = site.module;
  arguments.tokens = pass.tokens;
  arguments.first_token = pass.first_token;
  arguments.first_row = site.first_row;
  arguments.threshold = static_cast<uint32_t>(pass.rate * 4294967296.0);
  arguments.scale = static_cast<float>(1.0 / (1.0 - pass.rate));
  arguments.x = x.data_ptr();
  arguments.out = out2.data_ptr();
  arguments.x_stride = arguments.out_stride = 14;
  kernels::dropout::ApplyReference(arguments);
  EXPECT_TRUE(at::equal(out2, out));
  EXPECT_GT(out.eq(0).sum().item<int64_t>(), 0);
}

// In bf16, as the kernels are, which round nothing before the gradients. Two parts of a fused layer.
TEST(LoraProductReferences, AreTheProductsOfALayer) {
  at::manual_seed(6);
  const auto random = [](at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16); };
  const auto near = [](const at::Tensor& actual, const at::Tensor& expected, const char* what) {
    const double difference = (actual.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>();
    EXPECT_LE(difference, expected.to(at::kDouble).abs().max().item<double>() / 64) << what;
  };
  Arena arena;
  const at::Tensor wide = random({9, 30}), x = wide.narrow(1, 2, 20), factor = random({5, 20});
  const at::Tensor projected = ProjectRows(x, factor.t(), Slot::kLoraInner, arena).clone();
  const at::Tensor by_columns = ProjectRows(x, factor.t().contiguous(), Slot::kLoraInner, arena).clone();
  const at::Tensor out = at::zeros({9, 7}, at::kBFloat16);
  for (const auto& [rank_stride, feature_stride, data] :
       {std::tuple<int64_t, int64_t, at::Tensor>{20, 1, factor}, {1, 5, factor.t().contiguous()}}) {
    kernels::lora_products::ProjectReference(
        {9, 20, 5, x.data_ptr(), x.stride(0), data.data_ptr(), rank_stride, feature_stride, out.data_ptr(), 7});
    near(out.narrow(1, 0, 5), projected, "x times A");
    near(out.narrow(1, 0, 5), by_columns, "dy times B");
  }
  EXPECT_TRUE(out.narrow(1, 5, 2).eq(0).all().item<bool>()) << "between the rows";

  const at::Tensor left = random({9, 5}), first = at::randn({2, 8}), second = at::randn({12, 3});
  const at::Tensor first2 = first.clone(), second2 = second.clone(), sums = at::zeros({2, 5, 20});
  AddOuterProducts(left, x, {{0, 0, 1, first}, {2, 8, 0.5, second.t()}}, Slot::kLoraBGradient, arena);
  // A block of the result each, as the kernels take them.
  const auto add = [&](int64_t rank, int64_t ranks, int64_t column, int64_t columns, float scale, float* gradient,
                       int64_t rank_stride, int64_t column_stride) {
    kernels::lora_products::OuterReference({9, ranks, columns, left.narrow(1, rank, ranks).data_ptr(), 5,
                                            x.narrow(1, column, columns).data_ptr(), x.stride(0), 2,
                                            sums.data_ptr<float>()});
    kernels::lora_products::AddOuterReference(
        {ranks, columns, 2, sums.data_ptr<float>(), 0, ranks, scale, gradient, rank_stride, column_stride});
  };
  add(0, 2, 0, 8, 1, first2.data_ptr<float>(), 8, 1);
  add(2, 3, 8, 12, 0.5f, second2.data_ptr<float>(), 1, 3);
  near(first2, first, "gradient of A");
  near(second2, second, "gradient of B, transposed and scaled");
  EXPECT_FALSE(at::equal(second2, second)) << "GEMMs round to bf16 before";
}

TEST_P(KernelReferencesTest, RowsInEightBits) {
  const at::Tensor x = Random({6, 40}) * at::pow(10.0, at::arange(6) - 3).unsqueeze(1).to(dtype());
  const at::Tensor wide = at::zeros({6, 48}, dtype());
  wide.narrow(1, 0, 40).copy_(x);
  const at::Tensor codes = at::zeros({6, 44}, at::kByte), scales = at::zeros({6});
  kernels::fp8_rows::QuantizeReference(
      {GetParam(), 6, 40, wide.data_ptr(), 48, codes.data_ptr<uint8_t>(), 44, scales.data_ptr<float>()});
  // LibTorch's own rounding.
  const at::Tensor values = x.to(at::kFloat), expected = std::get<0>(values.abs().max(1)) / 448;
  EXPECT_TRUE(at::equal(scales, expected));
  const at::Tensor rounded = (values * expected.reciprocal().unsqueeze(1)).to(at::kFloat8_e4m3fn);
  EXPECT_TRUE(at::equal(codes.narrow(1, 0, 40), rounded.view(at::kByte)));
  EXPECT_TRUE(codes.narrow(1, 40, 4).eq(0).all().item<bool>()) << "between the rows";
}

TEST(Fp8Codes, EveryValueOfBfloat16RoundsAsLibTorchDoes) {
  for (int32_t bits = 0; bits < 65536; ++bits) {
    const at::BFloat16 value(static_cast<uint16_t>(bits), at::BFloat16::from_bits());
    const auto number = static_cast<float>(value);
    const uint8_t code = kernels::fp8_rows::ToE4m3(number);
    if (std::abs(number) <= kernels::fp8_rows::kLargest) {
      EXPECT_EQ(code, at::Float8_e4m3fn(number).x) << number;
      EXPECT_EQ(kernels::fp8_rows::FromE4m3(code),
                static_cast<float>(at::Float8_e4m3fn(code, at::Float8_e4m3fn::from_bits())));
    } else if (std::isnan(number)) {
      EXPECT_TRUE(std::isnan(kernels::fp8_rows::FromE4m3(code)));
    } else {
      EXPECT_EQ(kernels::fp8_rows::FromE4m3(code), number > 0 ? 448 : -448) << number;
    }
  }
}

TEST_P(KernelReferencesTest, AdamW) {
  const at::Tensor value = Random({50}), gradient = at::randn({50});
  const at::Tensor master = value.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true), value2 = value.clone();
  const at::Tensor first = at::zeros({50}), second = at::zeros({50});
  AdamWOptions options;
  options.weight_decay = 0.1;
  AdamW optimizer({{"w", value, gradient}}, options);
  const bool rounds = dtype() != at::kFloat;
  for (int64_t step = 1; step <= 4; ++step) {
    optimizer.Step(1e-2);
    const kernels::adamw::Tensor tensor{50,
                                        master.data_ptr<float>(),
                                        gradient.data_ptr<float>(),
                                        first.data_ptr<float>(),
                                        second.data_ptr<float>(),
                                        rounds ? value2.data_ptr() : nullptr};
    kernels::adamw::StepReference(
        {GetParam(), 1e-2, options.beta1, options.beta2, options.epsilon, options.weight_decay, step, 1}, &tensor, 1);
  }
  ExpectEqual(rounds ? value2 : master, value, "values");
  ExpectEqual(first, optimizer.states()[0].first_moment, "first moment");
  ExpectEqual(second, optimizer.states()[0].second_moment, "second moment");
}

INSTANTIATE_TEST_SUITE_P(Types, KernelReferencesTest, ::testing::Values(ElementType::kFloat32, ElementType::kBfloat16),
                         [](const auto& info) { return info.param == ElementType::kFloat32 ? "fp32" : "bf16"; });

}  // namespace
}  // namespace longspan::trainer
