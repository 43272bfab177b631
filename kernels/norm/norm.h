// The norms of decoder layers over vectors of `size` values, and their gradients.
//
//   kRms     r = 1 / sqrt(mean(x²) + epsilon)           out = x·r ∘ w                 (arXiv 1910.07467)
//   kLayer   m = mean(x)   r = 1 / sqrt(mean((x - m)²) + epsilon)   out = (x - m)·r ∘ w + b   (arXiv 1607.06450)
//
// There are rows·heads vectors: a norm of whole rows has one head, one of attention heads several in a row. Rows and
// heads may be apart by any stride, in elements; values of a vector are next to each other. Statistics are fp32: of
// kRms r, at row·statistics_stride + head; of kLayer m and r, at 2·(row·statistics_stride + head).
//
// Arithmetic is fp32, with one rounding to the type; the variance is of centred values. Sums over rows go into `parts`
// partial sums each of consecutive rows, and these are added up in order: the same inputs and parts give the same bits
// on one architecture. 1 <= size <= kSizeMax; fast where pointers, strides and size are multiples of 16 bytes.
#pragma once

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels::norm {

enum class Kind { kRms, kLayer };

inline constexpr int64_t kSizeMax = 16384;

struct Vectors {
  int64_t rows = 0, heads = 1, size = 0;
};

// (rows, heads, size) by strides.
struct View {
  void* data = nullptr;
  int64_t row_stride = 0, head_stride = 0;
};

struct ForwardArguments {
  ElementType type = ElementType::kFloat32;
  Kind kind = Kind::kRms;
  Vectors vectors;
  View x;                        // read; with `added` overwritten by x + added first, rounded to the type
  View added;                    // data null: nothing is added
  const void* weight = nullptr;  // (size)
  const void* bias = nullptr;    // (size), of kLayer alone
  float epsilon = 0;
  View out;                     // may be x where nothing is added
  float* statistics = nullptr;  // null: not wanted
  int64_t statistics_stride = 1;
};

struct BackwardArguments {
  ElementType type = ElementType::kFloat32;
  Kind kind = Kind::kRms;
  Vectors vectors;
  View x;
  const void* weight = nullptr;
  const float* statistics = nullptr;  // of the forward pass
  int64_t statistics_stride = 1;
  View out_gradient;
  View x_gradient;                   // may be out_gradient where it is overwritten
  bool adds = true;                  // to x_gradient; else overwrites
  int64_t parts = 1;                 // of the sums over rows, at least 1
  float* sums = nullptr;             // workspace (parts, size), of kLayer (parts, 2·size); null: the weight is frozen
  float* weight_gradient = nullptr;  // (size), added to, where sums is given
  float* bias_gradient = nullptr;    // (size), likewise, of kLayer alone
};

// On host memory.
void ForwardReference(const ForwardArguments& arguments);
void BackwardReference(const BackwardArguments& arguments);

}  // namespace longspan::kernels::norm
