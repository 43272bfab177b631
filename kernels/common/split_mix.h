// The finaliser of SplitMix64 (Steele, Lea, Flood 2014), for the host and for CUDA: a number drawn by its counter.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define LONGSPAN_HOST_DEVICE __host__ __device__
#else
#define LONGSPAN_HOST_DEVICE
#endif

namespace longspan::kernels {

LONGSPAN_HOST_DEVICE inline uint64_t Mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

}  // namespace longspan::kernels
