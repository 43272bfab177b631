// What the CUDA kernels share: conversions, 16-byte accesses, sums over a warp and a block, and the dispatch by element
// type. Sums are fp32 in a fixed order, so that the same inputs give the same bits on one architecture.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels {

inline constexpr int kWarp = 32;
inline constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ inline float ToFloat(float value) { return value; }
__device__ inline float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }
template <typename T>
__device__ inline T FromFloat(float value);
template <>
__device__ inline float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 FromFloat<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// As many elements as one access of 16 bytes has.
template <typename T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <typename T>
struct alignas(16) Pack {
  T values[kPack<T>];
};

// `from` and `to` aligned to 16 bytes.
template <typename T>
__device__ inline void LoadPack(const T* from, float (&values)[kPack<T>]) {
  const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from);
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) values[i] = ToFloat(pack.values[i]);
}
template <typename T>
__device__ inline void StorePack(const float (&values)[kPack<T>], T* to) {
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) pack.values[i] = FromFloat<T>(values[i]);
  *reinterpret_cast<Pack<T>*>(to) = pack;
}

// Of a pack, or of one element where rows are not aligned.
template <typename T, int width>
__device__ inline void Load(const T* from, float (&values)[width]) {
  if constexpr (width == 1) {
    values[0] = ToFloat(*from);
  } else {
    LoadPack(from, values);
  }
}
template <typename T, int width>
__device__ inline void Store(const float (&values)[width], T* to) {
  if constexpr (width == 1) {
    *to = FromFloat<T>(values[0]);
  } else {
    StorePack(values, to);
  }
}

// Whether accesses of 16 bytes reach every row: the pointer and the strides (elements) allow it.
template <typename T, typename... Strides>
inline bool IsPacked(const T* pointer, Strides... strides) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && ((static_cast<int64_t>(strides) % kPack<T> == 0) && ...);
}

// The sum over the warp, in every lane.
__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
  return value;
}
__device__ inline float WarpMax(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, offset));
  }
  return value;
}

// The sum over the block, in every thread. `scratch`: shared memory of a value per warp. The block is of whole warps,
// and all of its threads call.
__device__ inline float BlockSum(float value, float* scratch) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  value = WarpSum(value);
  __syncthreads();  // an earlier sum has been read
  if (threadIdx.x % kWarp == 0) scratch[warp] = value;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < warps; ++i) sum += scratch[i];
  return sum;
}

// Runs body(T{}) with the device type of an element, and returns what it does.
template <typename Body>
cudaError_t WithDeviceType(ElementType type, Body body) {
  return type == ElementType::kFloat32 ? body(float{}) : body(__nv_bfloat16{});
}

// Blocks for `work` items of which each block takes `per_block`, no more than `most`: kernels stride over the rest.
inline unsigned BlocksFor(int64_t work, int64_t per_block, int64_t most = 1 << 20) {
  const int64_t blocks = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > most ? most : blocks);
}

}  // namespace longspan::kernels
