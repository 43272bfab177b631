// Rotary position embedding (arXiv 2104.09864) in the layout of Hugging Face models, in place: of each head's first
// 2·half values the pair (i, half + i) turns by the angle of (position, i); the others stay.
//
//   a' = a·cos - b·sin    b' = b·cos + a·sin        inverse: by the negative angle, which is the backward pass
//
// Heads lie by strides (elements) inside whatever rows they are part of, so the fused projection of q, k and v needs no
// split: rows are those of the whole product, heads its first columns. Arithmetic is fp32, rounded once. Deterministic.
// No workspace.
#pragma once

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels::rope {

struct Arguments {
  ElementType type = ElementType::kFloat32;
  int64_t rows = 0, heads = 0, half = 0;
  void* data = nullptr;  // (rows, heads, at least 2·half)
  int64_t row_stride = 0, head_stride = 0;
  const float* cosine = nullptr;  // (positions, half), rows table_stride apart
  const float* sine = nullptr;
  int64_t table_stride = 0;
  int64_t tokens = 0;                  // row n has position n mod tokens,
  const int64_t* positions = nullptr;  // or positions[n] where given
  bool inverse = false;
};

// On host memory.
void RotateReference(const Arguments& arguments);

}  // namespace longspan::kernels::rope
