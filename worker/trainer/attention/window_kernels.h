// Attention through a sliding window (sliding_window.h) on a GPU: one call for all rows, no mask over a whole sequence.
//
//   bf16   flash attention's own window; cuDNN has none
//   fp32   memory-efficient attention's window, where the last row is the token of the last key; else a mask in tiles
//   of
//          rows (shared sequences alone, where the keys are another rank's)
//
// Which one is logged once each. Both kernels count a row's keys from the last row and the last key backwards, so what
// a part of the queries sees of a part of the keys is first put that way:
//
//              keys  0 .. first_key ....................... first_key + keys
//   row 0                 [ left ····· o ····· right ]           o: the key as far from the last key as row 0 is from
//   row 1                   [ left ····· o ····· right ]            the last row
//   row rows - 1                    [ left ················· o
//
// Forward only: training attends without windows. Thread-safe. Legend as in attention.h.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "worker/trainer/attention/dense_attention.h"
#include "worker/trainer/attention/sliding_window.h"

namespace longspan::trainer {

// Row i < rows sees the keys j of [0, keys), counted from `first_key` on, with -left <= j - (i + keys - rows) <= right,
// of which there is one at least. The rows after these see none. rows may be 0 or less: none sees any.
struct WindowBand {
  int64_t rows = 0;
  int64_t first_key = 0, keys = 0;
  int64_t left = 0, right = 0;
};
// For `queries` rows and `keys` keys of a part.
WindowBand BandOf(const WindowPart& part, int64_t queries, int64_t keys);

// q (B, Hq, rows, D), k and v (B, Hkv, keys, D) on a GPU, already those of the band; fp32, or bf16 with D a multiple of
// 8 up to 256, else c10::Error.
DenseOutput GpuWindowForward(const WindowBand& band, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

// (rows, keys) in `options`: 0 where the row sees the key, else -inf. `first_row`, `rows`: a tile of the band's rows.
at::Tensor BandMask(const WindowBand& band, int64_t first_row, int64_t rows, const at::TensorOptions& options);

}  // namespace longspan::trainer
