#include "worker/trainer/model/rotary_positions.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace longspan::trainer {
namespace {

constexpr int64_t kTableStep = 2048;  // positions

// 2i / D for every pair i.
at::Tensor Exponents(int64_t dims) {
  return at::arange(0, dims, 2, at::kLong).to(at::kFloat).div_(static_cast<double>(dims));
}

at::Tensor PlainFrequencies(double theta, int64_t dims) { return at::pow(theta, Exponents(dims)).reciprocal_(); }

// theta grows with the length beyond the original one (NTK-aware, by the length at hand). transformers takes the length
// from a tensor of positions there, so that theta is an fp32 number.
at::Tensor DynamicFrequencies(const RopeParameters& rope, int64_t dims, int64_t tokens) {
  if (tokens <= rope.original_length) return PlainFrequencies(rope.theta, dims);
  const at::Tensor stretch = at::scalar_tensor(tokens, at::kLong)
                                 .mul(rope.factor)
                                 .div(static_cast<double>(rope.original_length))
                                 .sub(rope.factor - 1);
  const auto count = static_cast<double>(dims);
  const at::Tensor theta = at::pow(stretch, count / (count - 2)).mul(rope.theta);
  return at::pow(theta, Exponents(dims)).reciprocal_();
}

double YarnScale(double factor, double mscale) { return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

double YarnAttentionFactor(const RopeParameters& rope) {
  if (rope.attention_factor) return *rope.attention_factor;
  if (!rope.mscale || !rope.mscale_all_dim) return YarnScale(rope.factor, 1);
  return YarnScale(rope.factor, *rope.mscale) / YarnScale(rope.factor, *rope.mscale_all_dim);
}

// The pair, counted in dimensions, that makes `rotations` turns over the original length.
double YarnDimension(const RopeParameters& rope, int64_t dims, double rotations) {
  const double turns = static_cast<double>(rope.original_length) / (rotations * 2 * std::numbers::pi);
  return static_cast<double>(dims) * std::log(turns) / (2 * std::log(rope.theta));
}

// YaRN (arXiv 2309.00071, section 3.2): fast pairs keep their speed, slow ones are slowed by the factor, and between
// the two lies a ramp.
at::Tensor YarnFrequencies(const RopeParameters& rope, int64_t dims) {
  const at::Tensor periods = at::pow(rope.theta, Exponents(dims));
  const at::Tensor kept = periods.reciprocal();
  const at::Tensor slowed = periods.mul(rope.factor).reciprocal();
  double low = YarnDimension(rope, dims, rope.beta_fast);
  double high = YarnDimension(rope, dims, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dims - 1));
  if (low == high) high += 0.001;
  const at::Tensor ramp = at::arange(dims / 2, at::kFloat).sub(low).div(high - low).clamp(0, 1);
  const at::Tensor kept_share = at::rsub(ramp, 1);
  return slowed.mul(at::rsub(kept_share, 1)).add(kept.mul(kept_share));
}

// Llama 3.1: wavelengths that fit into the original length often enough stay, long ones are stretched, and between the
// two a blend.
at::Tensor Llama3Frequencies(const RopeParameters& rope, int64_t dims) {
  const auto original = static_cast<double>(rope.original_length);
  const at::Tensor plain = PlainFrequencies(rope.theta, dims);
  const at::Tensor wavelengths = plain.reciprocal().mul(2 * std::numbers::pi);
  const at::Tensor is_long = wavelengths.gt(original / rope.low_freq_factor);
  const at::Tensor is_short = wavelengths.lt(original / rope.high_freq_factor);
  const at::Tensor stretched = at::where(is_long, plain.div(rope.factor), plain);
  const at::Tensor share = wavelengths.reciprocal()
                               .mul(original)
                               .sub(rope.low_freq_factor)
                               .div(rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor blended = at::rsub(share, 1).mul(stretched).div(rope.factor).add(share.mul(stretched));
  return at::where(is_long.logical_or(is_short), stretched, blended);
}

}  // namespace

RotaryFrequencies ComputeRotaryFrequencies(const RopeParameters& rope, int64_t rotary_dims, int64_t tokens) {
  TORCH_CHECK(rotary_dims >= 2 && rotary_dims % 2 == 0, "rotary dimensions must be even, not ", rotary_dims);
  switch (rope.kind) {
    case RopeScalingKind::kDefault:
      return {PlainFrequencies(rope.theta, rotary_dims)};
    case RopeScalingKind::kLinear:
      return {PlainFrequencies(rope.theta, rotary_dims).div_(rope.factor)};
    case RopeScalingKind::kDynamic:
      return {DynamicFrequencies(rope, rotary_dims, tokens)};
    case RopeScalingKind::kYarn:
      return {YarnFrequencies(rope, rotary_dims), YarnAttentionFactor(rope)};
    case RopeScalingKind::kLlama3:
      return {Llama3Frequencies(rope, rotary_dims)};
  }
  TORCH_CHECK(false, "unknown rope scaling");
}

Rotation RotaryPositions::For(int64_t tokens) {
  const int64_t scaled_for =
      rope_.kind == RopeScalingKind::kDynamic ? std::max(tokens, rope_.original_length) : scaled_for_;
  if (!cosine_.defined() || cosine_.size(0) < tokens || scaled_for != scaled_for_) {
    const RotaryFrequencies frequencies = ComputeRotaryFrequencies(rope_, rotary_dims_, tokens);
    // More than was asked for: a text that is generated grows by one token at a time.
    const int64_t rows = (tokens + kTableStep - 1) / kTableStep * kTableStep;
    const at::Tensor angles = at::arange(rows, at::kFloat).unsqueeze(1).mul(frequencies.inverse.unsqueeze(0));
    cosine_ = at::cos(angles).mul_(frequencies.attention_factor).to(device_);
    sine_ = at::sin(angles).mul_(frequencies.attention_factor).to(device_);
    scaled_for_ = scaled_for;
  }
  return {cosine_.narrow(0, 0, tokens), sine_.narrow(0, 0, tokens), tokens};
}

Rotation RotaryPositions::Within(const PackedDocuments& documents) {
  if (!documents.positions.defined() || rope_.kind != RopeScalingKind::kDynamic) {
    Rotation rotation = For(documents.tokens_max);
    if (documents.positions.defined()) rotation.positions = documents.positions.to(device_);
    return rotation;
  }
  // The angles of a document depend on its length: one row of the table for each row of the batch.
  std::vector<at::Tensor> cosine, sine;
  for (const DocumentRun& run : documents.runs) {
    const Rotation document = For(run.tokens);
    cosine.push_back(document.cosine.narrow(0, 0, run.tokens).repeat({run.documents, 1}));
    sine.push_back(document.sine.narrow(0, 0, run.tokens).repeat({run.documents, 1}));
  }
  return {at::cat(cosine), at::cat(sine), documents.positions.numel()};
}

}  // namespace longspan::trainer
