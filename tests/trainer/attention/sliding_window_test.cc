// Attention through a window against attention with the whole mask.
#include "worker/trainer/attention/sliding_window.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/attention/window_kernels.h"

namespace longspan::trainer {
namespace {

using testing::RelativeError;

constexpr int64_t kHeadSize = 4;

at::Tensor Draw(at::IntArrayRef shape, const char* name) {
  return at::empty(shape, at::kFloat).normal_(0, 1, NamedGenerator(1, name));
}

// The definition, as one (T, T) mask.
at::Tensor MaskedAttention(const AttentionShape& shape, int64_t window, const at::Tensor& q, const at::Tensor& k,
                           const at::Tensor& v) {
  const auto heads_first = [&](const at::Tensor& rows) {
    const at::Tensor heads = rows.reshape({shape.sequences, shape.tokens, rows.size(1), kHeadSize}).transpose(1, 2);
    return heads.repeat_interleave(shape.query_heads / rows.size(1), 1);
  };
  const at::Tensor positions = at::arange(shape.tokens, at::kLong);
  const at::Tensor distance = positions.unsqueeze(1) - positions.unsqueeze(0);
  const at::Tensor hidden = distance.lt(0).logical_or(distance.ge(window));
  const at::Tensor scores = at::matmul(heads_first(q), heads_first(k).transpose(2, 3)) / std::sqrt(double{kHeadSize});
  const at::Tensor weights = at::softmax(scores.masked_fill(hidden, -INFINITY), -1);
  return at::matmul(weights, heads_first(v)).transpose(1, 2).reshape(q.sizes());
}

void ExpectAgreesWithMask(const AttentionShape& shape, int64_t window) {
  SCOPED_TRACE("B" + std::to_string(shape.sequences) + " T" + std::to_string(shape.tokens) + " W" +
               std::to_string(window));
  const int64_t rows = shape.sequences * shape.tokens;
  // Views of one fused tensor, as the layer has them.
  const at::Tensor fused = Draw({rows, shape.query_heads + 2 * shape.key_value_heads, kHeadSize}, "qkv");
  const at::Tensor q = fused.narrow(1, 0, shape.query_heads);
  const at::Tensor k = fused.narrow(1, shape.query_heads, shape.key_value_heads);
  const at::Tensor v = fused.narrow(1, shape.query_heads + shape.key_value_heads, shape.key_value_heads);
  const at::Tensor out = at::full({rows, shape.query_heads, kHeadSize}, NAN);
  SlidingWindowAttention(shape, window, q, k, v, out);
  EXPECT_LT(RelativeError(out, MaskedAttention(shape, window, q, k, v)), 1e-5);
}

TEST(SlidingWindow, AgreesWithAMaskForEveryLengthAndWindow) {
  for (const int64_t tokens : {1, 2, 7, 31}) {
    for (const int64_t window : {1, 2, 5, 30, 31, 32, 100}) ExpectAgreesWithMask({2, tokens, 4, 2}, window);
  }
}

TEST(SlidingWindow, AgreesWithAMaskAcrossTiles) {
  for (const int64_t tokens : {kWindowTileRowsMax - 1, kWindowTileRowsMax, kWindowTileRowsMax + 1, 1300L}) {
    for (const int64_t window : {1L, 100L, kWindowTileRowsMax, 700L}) ExpectAgreesWithMask({1, tokens, 3, 1}, window);
  }
}

TEST(SlidingWindow, ATokenSeesTheWindowAndNothingBeforeIt) {
  const AttentionShape shape{1, 20, 2, 2};
  const at::Tensor q = Draw({20, 2, kHeadSize}, "q"), k = Draw({20, 2, kHeadSize}, "k"), v = Draw({20, 2, 4}, "v");
  const at::Tensor before = at::empty_like(q), after = at::empty_like(q);
  SlidingWindowAttention(shape, 6, q, k, v, before);
  v.select(0, 3).add_(1);
  SlidingWindowAttention(shape, 6, q, k, v, after);
  for (int64_t token = 0; token < 20; ++token) {
    EXPECT_EQ(at::equal(before[token], after[token]), token < 3 || token > 8) << token;
  }
}

// Kernels with windows of their own get a band instead of a mask, so that is compared with the definition key by key.
TEST(SlidingWindow, ABandIsWhatThePartSeesOfTheKeys) {
  for (const int64_t window : {1, 2, 3, 7, 40}) {
    for (const int64_t ahead : {0, 1, 2, 5, 9, 50}) {  // of the first query before the first key
      for (const int64_t queries : {1, 2, 6}) {
        for (const int64_t keys : {1, 2, 5, 12}) {
          SCOPED_TRACE(::testing::Message()
                       << "window " << window << ", " << queries << " rows from " << ahead << ", " << keys << " keys");
          WindowPart part;
          part.window = window;
          part.first_query = 100 + ahead;
          part.first_key = 100;
          const WindowBand band = BandOf(part, queries, keys);
          for (int64_t row = 0; row < queries; ++row) {
            bool sees_any = false;
            for (int64_t key = 0; key < keys; ++key) {
              const int64_t distance = ahead + row - key, place = key - band.first_key;
              const bool sees = distance >= 0 && distance < window;
              sees_any |= sees;
              const int64_t from_diagonal = place - (row + band.keys - band.rows);
              const bool in_band = row < band.rows && place >= 0 && place < band.keys && from_diagonal >= -band.left &&
                                   from_diagonal <= band.right;
              EXPECT_EQ(in_band, sees) << "row " << row << ", key " << key;
              if (row < band.rows && place >= 0 && place < band.keys) {
                EXPECT_EQ(BandMask(band, row, 1, at::kFloat)[0][place].item<float>() == 0, sees);
              }
            }
            EXPECT_EQ(sees_any, row < band.rows) << "row " << row;
          }
          if (band.rows > 0) EXPECT_TRUE(band.left >= 0 && band.right >= 0);
        }
      }
    }
  }
}

TEST(SlidingWindow, RefusesShapesThatMeanNothing) {
  const at::Tensor rows = at::zeros({6, 2, kHeadSize});
  EXPECT_THROW(SlidingWindowAttention({1, 6, 2, 2}, 0, rows, rows, rows, rows), c10::Error);
  EXPECT_THROW(SlidingWindowAttention({1, 5, 2, 2}, 3, rows, rows, rows, rows), c10::Error);
}

}  // namespace
}  // namespace longspan::trainer
