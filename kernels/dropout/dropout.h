// Dropout by a counter-based mask: whether an element is kept is a pure function of (key, element), the key of a row
// being that of its sequence. So a forward pass that runs again, another tile size or another number of ranks see the
// same mask, and so do the host and a GPU.
//
//   kept    Mix(key ^ element) >> 32 >= threshold, Mix the finaliser of SplitMix64 (Steele, Lea, Flood 2014),
//           element = (first_token + n mod tokens)·columns + column, n = first_row + row
//   out     kept ? x·scale : 0, rounded once
//
// key = fold of Mix over (seed, step, sequence, layer, module), sequence = first_sequence + n / tokens.
#pragma once

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels::dropout {

struct Arguments {
  ElementType type = ElementType::kFloat32;
  int64_t rows = 0, columns = 0;
  int64_t seed = 0, step = 0, first_sequence = 0, layer = 0, module = 0;
  int64_t tokens = 1;       // rows of a sequence
  int64_t first_token = 0;  // of a sequence's first row
  int64_t first_row = 0;    // of all rows, the one that x begins with
  uint32_t threshold = 0;
  float scale = 1;
  const void* x = nullptr;  // (rows, columns)
  int64_t x_stride = 0;
  void* out = nullptr;  // likewise; may be x
  int64_t out_stride = 0;
};

// On host memory.
void ApplyReference(const Arguments& arguments);

}  // namespace longspan::kernels::dropout
