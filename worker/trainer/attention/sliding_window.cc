#include "worker/trainer/attention/sliding_window.h"

#include <algorithm>
#include <limits>

#include "worker/trainer/attention/block_attention.h"
#include "worker/trainer/attention/window_kernels.h"

namespace longspan::trainer {
namespace {

// (rows, rows + window - 1): 0 where row r may see the key window - 1 - r places before its own or nearer, else -inf.
at::Tensor TileMask(int64_t rows, int64_t window, at::ScalarType dtype) {
  const at::Tensor outside = at::ones({rows, rows + window - 1}, at::kBool);
  const at::Tensor band = outside.tril(window - 1).logical_and(outside.triu());
  return at::zeros(outside.sizes(), dtype).masked_fill_(band.logical_not(), -std::numeric_limits<double>::infinity());
}

// (1, H, rows, D) of a (N, H, D) view.
at::Tensor HeadsFirst(const at::Tensor& all, int64_t first_row, int64_t rows) {
  return all.narrow(0, first_row, rows).transpose(0, 1).unsqueeze(0);
}

struct Heads {
  at::Tensor q, k, v, out;
};

// Sequences of `tokens` rows each, one after the other from `first_row` on.
struct SequenceRows {
  int64_t first_row, sequences, tokens;
};

void AttendSequences(const SequenceRows& rows_of, int64_t window, const Heads& heads) {
  const int64_t tokens = rows_of.tokens;
  window = std::min(window, tokens);
  const int64_t tile_rows = std::min(kWindowTileRowsMax, tokens);
  const at::Tensor mask = TileMask(tile_rows, window, heads.q.scalar_type());
  for (int64_t sequence = 0; sequence < rows_of.sequences; ++sequence) {
    const int64_t start = rows_of.first_row + sequence * tokens;
    for (int64_t begin = 0; begin < tokens; begin += tile_rows) {
      const int64_t rows = std::min(tile_rows, tokens - begin);
      const int64_t before_sequence = std::max<int64_t>(0, window - 1 - begin);  // columns of the mask with no key
      const int64_t first_key = begin - (window - 1) + before_sequence;
      const int64_t keys = begin + rows - first_key;
      const at::Tensor values = std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(
          HeadsFirst(heads.q, start + begin, rows), HeadsFirst(heads.k, start + first_key, keys),
          HeadsFirst(heads.v, start + first_key, keys), /*dropout_p=*/0.0, /*is_causal=*/false,
          mask.narrow(0, 0, rows).narrow(1, before_sequence, keys)));
      HeadsFirst(heads.out, start + begin, rows).copy_(values);
    }
  }
}

void AttendSequencesOnGpu(const SequenceRows& rows_of, int64_t window, const Heads& heads) {
  const auto blocks = [&](const at::Tensor& all) {  // (sequences, H, tokens, D)
    return all.narrow(0, rows_of.first_row, rows_of.sequences * rows_of.tokens)
        .unflatten(0, {rows_of.sequences, rows_of.tokens})
        .transpose(1, 2);
  };
  const WindowBand band = BandOf({.window = window}, rows_of.tokens, rows_of.tokens);
  blocks(heads.out).copy_(GpuWindowForward(band, blocks(heads.q), blocks(heads.k), blocks(heads.v)).out);
}

void Write(const WindowPart& part, const at::Tensor& values, const at::Tensor& sums, const at::Tensor& out,
           const at::Tensor& logsumexp) {
  if (part.joins) {
    JoinSoftmax(out, logsumexp, values, sums);
  } else {
    out.copy_(values);
    logsumexp.copy_(sums);
  }
}

void WindowPartOnGpu(const WindowPart& part, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& out, const at::Tensor& logsumexp) {
  const WindowBand band = BandOf(part, q.size(2), k.size(2));
  if (band.rows <= 0) return;
  const DenseOutput all = GpuWindowForward(band, q.narrow(2, 0, band.rows), k.narrow(2, band.first_key, band.keys),
                                           v.narrow(2, band.first_key, band.keys));
  Write(part, all.out, all.logsumexp, out.narrow(2, 0, band.rows), logsumexp.narrow(2, 0, band.rows));
}

}  // namespace

void WindowPartForward(const WindowPart& part, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& out, const at::Tensor& logsumexp) {
  TORCH_CHECK(part.window >= 1 && part.first_key <= part.first_query, "attention through a window of ", part.window,
              " tokens from ", part.first_query, " to ", part.first_key);
  if (q.is_cuda()) {
    WindowPartOnGpu(part, q, k, v, out, logsumexp);
    return;
  }
  for (int64_t begin = 0; begin < q.size(2); begin += kWindowTileRowsMax) {
    WindowPart tile = part;
    tile.first_query += begin;
    const WindowBand band = BandOf(tile, std::min(kWindowTileRowsMax, q.size(2) - begin), k.size(2));
    if (band.rows <= 0) return;
    const auto [values, sums] = at::_scaled_dot_product_flash_attention_for_cpu(
        q.narrow(2, begin, band.rows), k.narrow(2, band.first_key, band.keys), v.narrow(2, band.first_key, band.keys),
        /*dropout_p=*/0.0, /*is_causal=*/false, BandMask(band, 0, band.rows, q.options()));
    Write(part, values, sums, out.narrow(2, begin, band.rows), logsumexp.narrow(2, begin, band.rows));
  }
}

void SlidingWindowAttention(const AttentionShape& shape, int64_t window, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& out) {
  TORCH_CHECK(window >= 1, "attention through a window of ", window, " tokens");
  TORCH_CHECK(q.size(0) == shape.sequences * shape.tokens && out.sizes() == q.sizes(), "attention of ", shape.sequences,
              " sequences of ", shape.tokens, " tokens over ", q.size(0), " rows");
  const Heads heads{q, k, v, out};
  const auto attend = q.is_cuda() ? AttendSequencesOnGpu : AttendSequences;
  if (shape.documents.empty()) attend({0, shape.sequences, shape.tokens}, window, heads);
  for (const DocumentRun& run : shape.documents) attend({run.first_row, run.documents, run.tokens}, window, heads);
}

}  // namespace longspan::trainer
