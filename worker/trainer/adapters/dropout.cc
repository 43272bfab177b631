#include "worker/trainer/adapters/dropout.h"

#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/model/row_parallel.h"

namespace longspan::trainer {
namespace {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose outputs pass as independent for counters.
uint64_t Mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

uint64_t SequenceKey(const DropoutPass& pass, const DropoutSite& site, int64_t sequence) {
  uint64_t key = 0;
  for (const int64_t part : {pass.seed, pass.step, pass.first_sequence_index + sequence, site.layer, site.module}) {
    key = Mix(key ^ static_cast<uint64_t>(part));
  }
  return key;
}

template <typename T>
void DropRow(uint64_t key, uint64_t first_element, uint32_t threshold, float scale, const T* x, T* out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const bool keep = static_cast<uint32_t>(Mix(key ^ (first_element + static_cast<uint64_t>(i))) >> 32) >= threshold;
    out[i] = keep ? static_cast<T>(static_cast<float>(x[i]) * scale) : static_cast<T>(0.0f);
  }
}

template <typename T>
void DropRows(const DropoutPass& pass, const DropoutSite& site, const at::Tensor& x, const at::Tensor& out) {
  const int64_t size = x.size(1);
  const auto threshold = static_cast<uint32_t>(pass.rate * 4294967296.0);
  const auto scale = static_cast<float>(1.0 / (1.0 - pass.rate));
  const T* from = x.data_ptr<T>();
  T* to = out.data_ptr<T>();
  ForRowRanges(x.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t batch_row = site.first_row + row;
      const uint64_t key = SequenceKey(pass, site, batch_row / pass.tokens);
      const int64_t token = pass.first_token + batch_row % pass.tokens;
      const uint64_t first_element = static_cast<uint64_t>(token) * static_cast<uint64_t>(size);
      DropRow(key, first_element, threshold, scale, from + row * x.stride(0), to + row * out.stride(0), size);
    }
  });
}

}  // namespace

void ApplyDropout(const DropoutPass& pass, const DropoutSite& site, const at::Tensor& x, const at::Tensor& out) {
  TORCH_CHECK(x.stride(1) == 1 && out.stride(1) == 1 && pass.tokens > 0, "dropout wants rows");
  if (x.is_cuda()) {
    gpu::ApplyDropout({pass.seed, pass.step, pass.first_sequence_index, site.layer, site.module, pass.tokens,
                       pass.first_token, site.first_row, pass.rate},
                      x, out);
    return;
  }
  if (x.scalar_type() == at::kFloat) {
    DropRows<float>(pass, site, x, out);
  } else {
    TORCH_CHECK(x.scalar_type() == at::kBFloat16, "dropout of ", x.scalar_type());
    DropRows<at::BFloat16>(pass, site, x, out);
  }
}

}  // namespace longspan::trainer
