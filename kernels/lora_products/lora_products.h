// LoRA's products that a GEMM library is slow at, for factors of few ranks: those whose result is tiny beside what is
// summed over, so that tiles of the result alone would keep a few multiprocessors busy.
//
//   Project   out (n, r) = x (n, k) · factor (k, r)       x·Aᵀ and dy·(s·B): sums over features
//   Outer     leftᵀ (r, n) · right (n, c), in parts       dA = gᵀ·x and dBᵀ = aᵀ·dy: sums over tokens
//   AddOuter  gradient (r, c) += scale · the sum of those parts, of some of the ranks
//
// The other two, y += a·(s·B)ᵀ and dx += g·A, have as many results as the base product and a sum of r terms: they move
// y once in and once out whatever computes them, and stay with cuBLAS.
//
// bf16 in, products on tensor cores, sums in fp32; out is rounded once, gradients are fp32 and never rounded between.
// Sums are split into `parts` of consecutive terms, whole tiles each, and these are added up in order: the same inputs
// and parts give the same bits on one architecture. Rows may be apart by any stride, in elements; values of a row are
// next to each other. 1 <= ranks <= kRanksMax; fast where pointers, strides, k, c and ranks are multiples of 16 bytes.
#pragma once

#include <cstdint>

namespace longspan::kernels::lora_products {

inline constexpr int64_t kRanksMax = 64;
inline constexpr int64_t kPartsMax = 65535;

struct ProjectArguments {
  int64_t rows = 0, features = 0, ranks = 0;
  const void* x = nullptr;  // (rows, features) bf16
  int64_t x_stride = 0;
  const void* factor = nullptr;  // bf16; one of its strides is 1
  int64_t factor_rank_stride = 0, factor_feature_stride = 0;
  void* out = nullptr;  // (rows, ranks) bf16, overwritten
  int64_t out_stride = 0;
  int64_t parts = 1;
  float* sums = nullptr;  // workspace (parts, rows, ranks)
};

struct OuterArguments {
  int64_t rows = 0, ranks = 0, columns = 0;
  const void* left = nullptr;  // (rows, ranks) bf16
  int64_t left_stride = 0;
  const void* right = nullptr;  // (rows, columns) bf16
  int64_t right_stride = 0;
  int64_t parts = 1;
  float* sums = nullptr;  // (parts, ranks, columns), overwritten
};

struct AddOuterArguments {
  int64_t ranks = 0, columns = 0, parts = 1;  // of sums
  const float* sums = nullptr;
  int64_t first_rank = 0, gradient_ranks = 0;  // ranks of sums that the gradient is of
  float scale = 1;
  float* gradient = nullptr;  // (gradient_ranks, columns) fp32, added to
  int64_t gradient_rank_stride = 0, gradient_column_stride = 0;
};

// On host memory.
void ProjectReference(const ProjectArguments& arguments);
void OuterReference(const OuterArguments& arguments);
void AddOuterReference(const AddOuterArguments& arguments);

}  // namespace longspan::kernels::lora_products
