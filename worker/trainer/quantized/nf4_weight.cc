#include "worker/trainer/quantized/nf4_weight.h"

#include <algorithm>
#include <atomic>

#include "kernels/nf4/nf4.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/model/row_parallel.h"

namespace longspan::trainer {
namespace {

namespace nf4 = kernels::nf4;

constexpr int64_t kChunk = 64 * nf4::kBlock;  // values that a thread takes at once

// body(begin, count) for chunks of [0, values), each beginning at a whole block.
void ForChunks(int64_t values, const std::function<void(int64_t begin, int64_t count)>& body) {
  ForRowRanges((values + kChunk - 1) / kChunk, 16, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      body(chunk * kChunk, std::min(kChunk, values - chunk * kChunk));
    }
  });
}

}  // namespace

Nf4Weight QuantizeNf4(const at::Tensor& weight, const std::string& name) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_floating_point(), "a weight to quantize must be a matrix, not ",
              weight.sizes());
  const at::Tensor values = weight.to(at::kFloat).contiguous();
  const int64_t count = values.numel();
  Nf4Weight result;
  result.outputs = weight.size(0);
  result.inputs = weight.size(1);
  result.codes = at::empty({nf4::CodeBytes(count)}, at::kByte);
  const at::Tensor scales = at::empty({nf4::Blocks(count)}, at::kFloat);
  const float* x = values.data_ptr<float>();
  auto* codes = result.codes.data_ptr<uint8_t>();
  auto* scale = scales.data_ptr<float>();
  std::atomic<bool> finite = true;
  ForChunks(count, [&](int64_t begin, int64_t size) {
    if (!nf4::Quantize(x + begin, size, codes + begin / 2, scale + begin / nf4::kBlock)) finite = false;
  });
  if (!finite) throw UserError("cannot quantize " + name + ": a value is not finite");
  result.scale_mean = count == 0 ? 0.0f : scales.mean().item<float>();
  result.scale_codes = at::empty({scales.numel()}, at::kByte);
  result.scale_maxima = at::empty({nf4::ScaleBlocks(scales.numel())}, at::kFloat);
  nf4::QuantizeScales(scale, scales.numel(), result.scale_mean, result.scale_codes.data_ptr<uint8_t>(),
                      result.scale_maxima.data_ptr<float>());
  return result;
}

Nf4Weight OnDevice(Nf4Weight weight, at::Device device) {
  for (at::Tensor* tensor : {&weight.codes, &weight.scale_codes, &weight.scale_maxima}) *tensor = tensor->to(device);
  return weight;
}

void DequantizeNf4(const Nf4Weight& weight, const at::Tensor& out) {
  TORCH_CHECK(out.is_contiguous() && out.dim() == 2 && out.size(0) == weight.outputs && out.size(1) == weight.inputs,
              "a weight of (", weight.outputs, ", ", weight.inputs, ") into ", out.sizes());
  if (out.is_cuda()) {
    gpu::DequantizeNf4(weight.codes, weight.scale_codes, weight.scale_maxima, weight.scale_mean, out);
    return;
  }
  const auto* codes = weight.codes.const_data_ptr<uint8_t>();
  const auto* scale_codes = weight.scale_codes.const_data_ptr<uint8_t>();
  const auto* scale_maxima = weight.scale_maxima.const_data_ptr<float>();
  const auto dequantize = [&](int64_t begin, int64_t count, float* to) {
    nf4::Dequantize(codes, scale_codes, scale_maxima, weight.scale_mean, begin, count, to);
  };
  if (out.scalar_type() == at::kFloat) {
    float* to = out.data_ptr<float>();
    ForChunks(out.numel(), [&](int64_t begin, int64_t count) { dequantize(begin, count, to + begin); });
    return;
  }
  TORCH_CHECK(out.scalar_type() == at::kBFloat16, "dequantizing to ", out.scalar_type());
  auto* to = out.data_ptr<at::BFloat16>();
  ForChunks(out.numel(), [&](int64_t begin, int64_t count) {
    float values[kChunk];
    dequantize(begin, count, values);
    std::copy(values, values + count, to + begin);
  });
}

}  // namespace longspan::trainer
