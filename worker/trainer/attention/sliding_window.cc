#include "worker/trainer/attention/sliding_window.h"

#include <algorithm>
#include <limits>

#include "worker/trainer/attention/block_attention.h"

namespace longspan::trainer {
namespace {

// (rows, rows + window - 1): 0 where row r may see the key window - 1 - r places before its own or nearer, else -inf.
at::Tensor BandMask(int64_t rows, int64_t window, at::ScalarType dtype) {
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
  const at::Tensor mask = BandMask(tile_rows, window, heads.q.scalar_type());
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

// (rows, keys): 0 where the row sees the key, `ahead` tokens before it where both have number 0; else -inf.
at::Tensor PartMask(int64_t rows, int64_t keys, int64_t ahead, int64_t window, at::ScalarType dtype) {
  const at::Tensor distance = at::arange(ahead, ahead + rows).unsqueeze(1).sub(at::arange(keys).unsqueeze(0));
  const at::Tensor hidden = distance.lt(0).logical_or_(distance.ge(window));
  return at::zeros(hidden.sizes(), dtype).masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

}  // namespace

void WindowPartForward(const WindowPart& part, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& out, const at::Tensor& logsumexp) {
  TORCH_CHECK(part.window >= 1 && part.first_key <= part.first_query, "attention through a window of ", part.window,
              " tokens from ", part.first_query, " to ", part.first_key);
  const int64_t keys_end = part.first_key + k.size(2);
  for (int64_t begin = 0; begin < q.size(2); begin += kWindowTileRowsMax) {
    const int64_t first = part.first_query + begin;
    // The last token that sees any of the keys is the last key's place and a window less one on.
    const int64_t rows = std::min({kWindowTileRowsMax, q.size(2) - begin, keys_end + part.window - 1 - first});
    if (rows <= 0) return;
    const int64_t first_key = std::max(part.first_key, first - part.window + 1);
    const int64_t keys = std::min(keys_end, first + rows) - first_key;
    const at::Tensor mask = PartMask(rows, keys, first - first_key, part.window, q.scalar_type());
    const int64_t skipped = first_key - part.first_key;
    const auto [values, sums] = at::_scaled_dot_product_flash_attention_for_cpu(
        q.narrow(2, begin, rows), k.narrow(2, skipped, keys), v.narrow(2, skipped, keys), /*dropout_p=*/0.0,
        /*is_causal=*/false, mask);
    if (part.joins) {
      JoinSoftmax(out.narrow(2, begin, rows), logsumexp.narrow(2, begin, rows), values, sums);
    } else {
      out.narrow(2, begin, rows).copy_(values);
      logsumexp.narrow(2, begin, rows).copy_(sums);
    }
  }
}

void SlidingWindowAttention(const AttentionShape& shape, int64_t window, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& out) {
  TORCH_CHECK(window >= 1, "attention through a window of ", window, " tokens");
  TORCH_CHECK(q.is_cpu(), "a sliding window on a GPU");
  TORCH_CHECK(q.size(0) == shape.sequences * shape.tokens && out.sizes() == q.sizes(), "attention of ", shape.sequences,
              " sequences of ", shape.tokens, " tokens over ", q.size(0), " rows");
  const Heads heads{q, k, v, out};
  if (shape.documents.empty()) AttendSequences({0, shape.sequences, shape.tokens}, window, heads);
  for (const DocumentRun& run : shape.documents) {
    AttendSequences({run.first_row, run.documents, run.tokens}, window, heads);
  }
}

}  // namespace longspan::trainer
