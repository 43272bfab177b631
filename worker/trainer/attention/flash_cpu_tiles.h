// The parts of the flash attention kernels that know nothing of attention: products of small tiles, and packing.
// Private to the kernel units; all of it is in an unnamed namespace, because each unit is compiled for other
// instructions.
//
// `Simd` is the unit's vector: Vector, kWidth floats; kVectors vectors by kFlashStripRows rows are the register tile.
#pragma once

#include <cstdint>
#include <utility>

#include "worker/trainer/attention/flash_cpu_problem.h"

namespace longspan::trainer {
namespace {

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline float* At(const FlashView& view, int64_t block, int64_t head, int64_t row) {
  return view.data + block * view.block_stride + head * view.head_stride + row * view.row_stride;
}

// For e^x = 2^n e^r.
inline constexpr float kLog2OfE = 1.44269504088896341f;
inline constexpr float kLn2High = 0.693359375f;
inline constexpr float kLn2Low = -2.12194440e-4f;

// e^r for |r| <= ln(2)/2.
template <typename Simd>
typename Simd::Vector ExpNearZero(typename Simd::Vector r) {
  typename Simd::Vector y = Simd::Set(1.9875691500e-4f);
  for (const float coefficient :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    y = Simd::MultiplyAdd(y, r, Simd::Set(coefficient));
  }
  return Simd::Add(Simd::MultiplyAdd(Simd::Multiply(r, r), y, r), Simd::Set(1.0f));
}

enum class Into { kOverwrite, kAdd, kDecayAndAdd };

// C (rows, n) = A (rows, k) · B (k, n). B and C have their n values one beside the other, A its k, or its rows where it
// is `transposed`. kDecayAndAdd: C's old row r counts decay[r] times.
struct Product {
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t k;
  Into into = Into::kOverwrite;
  const float* decay = nullptr;
};

// One register tile. The sum starts at zero whatever C holds, so a long sum is one of short sums, which rounds less.
template <typename Simd, bool kTransposed, int kRows, int kVectors>
void RegisterTile(const Product& product) {
  using Vector = typename Simd::Vector;
  constexpr int kWidth = Simd::kWidth;
  Vector sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sum[row][n] = Simd::Zero();
  }
  const float* a = product.a;
  const float* b = product.b;
  const int64_t a_row = kTransposed ? 1 : product.a_stride;
  const int64_t a_step = kTransposed ? product.a_stride : 1;
  for (int64_t step = 0; step < product.k; ++step, a += a_step, b += product.b_stride) {
    Vector in[kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) in[n] = Simd::Load(b + n * kWidth);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const Vector factor = Simd::Set(a[row * a_row]);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sum[row][n] = Simd::MultiplyAdd(factor, in[n], sum[row][n]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
    float* c = product.c + row * product.c_stride;
    if (product.into == Into::kAdd) {
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sum[row][n] = Simd::Add(sum[row][n], Simd::Load(c + n * kWidth));
    } else if (product.into == Into::kDecayAndAdd) {
      const Vector decay = Simd::Set(product.decay[row]);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) {
        sum[row][n] = Simd::MultiplyAdd(decay, Simd::Load(c + n * kWidth), sum[row][n]);
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) Simd::Store(c + n * kWidth, sum[row][n]);
  }
}

using RegisterTileFunction = void (*)(const Product&);

template <typename Simd, bool kTransposed, int... kIndex>
struct RegisterTileTable {
  static constexpr RegisterTileFunction kFunctions[] = {
      RegisterTile<Simd, kTransposed, kIndex / Simd::kVectors + 1, kIndex % Simd::kVectors + 1>...};
};

template <typename Simd, bool kTransposed, int... kIndex>
RegisterTileFunction FindRegisterTile(int64_t rows, int64_t vectors, std::integer_sequence<int, kIndex...>) {
  return RegisterTileTable<Simd, kTransposed, kIndex...>::kFunctions[(rows - 1) * Simd::kVectors + vectors - 1];
}

// `rows` <= kFlashStripRows of C, and `vectors` vectors of each, in register tiles of about the same width.
template <typename Simd, bool kTransposed>
void MultiplyStrip(Product product, int64_t rows, int64_t vectors) {
  for (int64_t left = CeilDiv(vectors, Simd::kVectors); left > 0; --left) {
    const int64_t taken = CeilDiv(vectors, left);
    FindRegisterTile<Simd, kTransposed>(rows, taken,
                                        std::make_integer_sequence<int, kFlashStripRows * Simd::kVectors>())(product);
    vectors -= taken;
    product.b += taken * Simd::kWidth;
    product.c += taken * Simd::kWidth;
  }
}

// strip(first row, rows)
template <typename Strip>
inline void ForStrips(int64_t rows, Strip strip) {
  for (int64_t row = 0; row < rows; row += kFlashStripRows) strip(row, Min(kFlashStripRows, rows - row));
}

// Rows of a view as the rows of `to`, times `factor`, with zeros up to a whole number of vectors.
template <typename Simd>
void PackRows(const float* from, int64_t row_stride, int64_t rows, int64_t size, float factor, float* to,
              int64_t to_stride) {
  const typename Simd::Vector factors = Simd::Set(factor);
  for (int64_t row = 0; row < rows; ++row, from += row_stride, to += to_stride) {
    int64_t i = 0;
    for (; i + Simd::kWidth <= size; i += Simd::kWidth)
      Simd::Store(to + i, Simd::Multiply(Simd::Load(from + i), factors));
    if (i < size) Simd::Store(to + i, Simd::Multiply(Simd::LoadFirst(from + i, size - i), factors));
  }
}

// Rows of a view as the columns of `to` (size, kFlashTile), times `factor`, with zeros up to a whole number of vectors.
template <typename Simd>
void PackColumns(const float* from, int64_t row_stride, int64_t rows, int64_t size, float factor, float* to) {
  constexpr int kWidth = Simd::kWidth;
  const typename Simd::Vector factors = Simd::Set(factor);
  for (int64_t first = 0; first < rows; first += kWidth) {
    for (int64_t i = 0; i < size; i += kWidth) {
      typename Simd::Vector square[kWidth];
      const int64_t columns = Min(kWidth, size - i);
      const float* corner = from + first * row_stride + i;
      if (columns == kWidth && rows - first >= kWidth) {
        for (int row = 0; row < kWidth; ++row) square[row] = Simd::Load(corner + row * row_stride);
      } else {
        for (int row = 0; row < kWidth; ++row) {
          square[row] = first + row < rows ? Simd::LoadFirst(corner + row * row_stride, columns) : Simd::Zero();
        }
      }
      Simd::Transpose(square);
      for (int64_t column = 0; column < columns; ++column) {
        Simd::Store(to + (i + column) * kFlashTile + first, Simd::Multiply(square[column], factors));
      }
    }
  }
}

// Rows of `from` times `factor`, into or onto rows of a view.
template <typename Simd>
void UnpackRows(const float* from, int64_t from_stride, int64_t rows, int64_t size, float factor, bool adds, float* to,
                int64_t row_stride) {
  const typename Simd::Vector factors = Simd::Set(factor);
  for (int64_t row = 0; row < rows; ++row, from += from_stride, to += row_stride) {
    int64_t i = 0;
    for (; i + Simd::kWidth <= size; i += Simd::kWidth) {
      const typename Simd::Vector values = Simd::Load(from + i);
      Simd::Store(to + i,
                  adds ? Simd::MultiplyAdd(values, factors, Simd::Load(to + i)) : Simd::Multiply(values, factors));
    }
    for (; i < size; ++i) to[i] = adds ? __builtin_fmaf(from[i], factor, to[i]) : from[i] * factor;
  }
}

}  // namespace
}  // namespace longspan::trainer
