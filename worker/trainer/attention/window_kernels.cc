#include "worker/trainer/attention/window_kernels.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <tuple>

namespace longspan::trainer {
namespace {

constexpr int64_t kCausalFromBottomRight = 2;  // of memory-efficient attention's masks
constexpr int64_t kBiasAlignment = 16;         // elements between rows of its bias

enum class WindowKernel { kFlash, kEfficient, kMaskedTiles };

WindowKernel KernelFor(const WindowBand& band, const at::Tensor& q) {
  static std::once_flag told[3];
  static constexpr const char* kNames[] = {"flash attention", "memory-efficient attention",
                                           "memory-efficient attention with masks, in tiles"};
  const WindowKernel kernel = q.scalar_type() == at::kBFloat16 ? WindowKernel::kFlash
                              : band.right == 0                ? WindowKernel::kEfficient
                                                               : WindowKernel::kMaskedTiles;
  std::call_once(told[static_cast<int>(kernel)], [&] {
    spdlog::info("attention through a window on the GPU by {} ({} query heads of {})", kNames[static_cast<int>(kernel)],
                 q.size(1), q.size(3));
  });
  return kernel;
}

// (B, H, n, D) as the kernels that know windows want it, (B, n, H, D), and back.
at::Tensor TokensFirst(const at::Tensor& heads) { return heads.transpose(1, 2); }

at::Tensor Repeated(const at::Tensor& heads, int64_t query_heads) {
  return heads.size(1) == query_heads ? heads : heads.repeat_interleave(query_heads / heads.size(1), 1);
}

DenseOutput FlashWindow(const WindowBand& band, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  TORCH_CHECK(q.size(3) % 8 == 0 && q.size(3) <= 256, "attention through a window with bf16 heads of ", q.size(3),
              " on a GPU; it knows multiples of 8 up to 256");
  const auto all = at::_flash_attention_forward(
      TokensFirst(q), TokensFirst(k), TokensFirst(v), /*cum_seq_q=*/{}, /*cum_seq_k=*/{}, q.size(2), k.size(2),
      /*dropout_p=*/0.0, /*is_causal=*/false, /*return_debug_mask=*/false, /*scale=*/{}, band.left, band.right);
  return {TokensFirst(std::get<0>(all)), std::get<1>(all)};
}

DenseOutput EfficientWindow(const WindowBand& band, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const auto all = at::_efficient_attention_forward(
      TokensFirst(q), TokensFirst(Repeated(k, q.size(1))), TokensFirst(Repeated(v, q.size(1))), /*bias=*/{},
      /*cu_seqlens_q=*/{}, /*cu_seqlens_k=*/{}, q.size(2), k.size(2), /*dropout_p=*/0.0, kCausalFromBottomRight,
      /*compute_log_sumexp=*/true, /*scale=*/{}, /*seqlen_k=*/{}, /*window_size=*/band.left + 1);
  return {TokensFirst(std::get<0>(all)), std::get<1>(all).narrow(2, 0, q.size(2))};
}

DenseOutput MaskedTiles(const WindowBand& band, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const at::Tensor keys = Repeated(k, q.size(1)), values = Repeated(v, q.size(1));
  DenseOutput result{at::empty_like(q), at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat))};
  for (int64_t begin = 0; begin < band.rows; begin += kWindowTileRowsMax) {
    const int64_t rows = std::min(kWindowTileRowsMax, band.rows - begin);
    const int64_t padded = (band.keys + kBiasAlignment - 1) / kBiasAlignment * kBiasAlignment;
    const at::Tensor bias = at::empty({rows, padded}, q.options()).narrow(1, 0, band.keys);
    at::Tensor(bias).copy_(BandMask(band, begin, rows, q.options()));
    const auto all = at::_scaled_dot_product_efficient_attention(q.narrow(2, begin, rows), keys, values,
                                                                 bias.expand({q.size(0), q.size(1), rows, band.keys}),
                                                                 /*compute_log_sumexp=*/true);
    result.out.narrow(2, begin, rows).copy_(std::get<0>(all));
    result.logsumexp.narrow(2, begin, rows).copy_(std::get<1>(all).narrow(2, 0, rows));
  }
  return result;
}

}  // namespace

WindowBand BandOf(const WindowPart& part, int64_t queries, int64_t keys) {
  const int64_t keys_end = part.first_key + keys;
  WindowBand band;
  // The last token that sees any of the keys is the last key's place and a window less one on.
  band.rows = std::min(queries, keys_end + part.window - 1 - part.first_query);
  band.first_key = std::max<int64_t>(0, part.first_query - part.window + 1 - part.first_key);
  const int64_t rows_end = part.first_query + band.rows;
  band.keys = std::min(keys_end, rows_end) - part.first_key - band.first_key;
  band.right = std::max<int64_t>(0, rows_end - keys_end);
  band.left = part.window - 1 - band.right;
  return band;
}

at::Tensor BandMask(const WindowBand& band, int64_t first_row, int64_t rows, const at::TensorOptions& options) {
  const auto places = options.dtype(at::kLong);
  const int64_t first = first_row + band.keys - band.rows;
  const at::Tensor distance =
      at::arange(band.keys, places).unsqueeze(0).sub(at::arange(first, first + rows, places).unsqueeze(1));
  const at::Tensor hidden = distance.lt(-band.left).logical_or_(distance.gt(band.right));
  return at::zeros({rows, band.keys}, options).masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

DenseOutput GpuWindowForward(const WindowBand& band, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  TORCH_CHECK(band.rows >= 1 && q.size(2) == band.rows && k.size(2) == band.keys && v.size(2) == band.keys &&
                  (q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16),
              "attention of ", q.scalar_type(), " through a window, of ", q.size(2), " rows to ", k.size(2), " keys");
  switch (KernelFor(band, q)) {
    case WindowKernel::kFlash:
      return FlashWindow(band, q, k, v);
    case WindowKernel::kEfficient:
      return EfficientWindow(band, q, k, v);
    case WindowKernel::kMaskedTiles:
      break;
  }
  return MaskedTiles(band, q, k, v);
}

}  // namespace longspan::trainer
