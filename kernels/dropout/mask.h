// The mask of dropout.h, for the host and for CUDA.
#pragma once

#include <cstdint>

#include "kernels/common/split_mix.h"
#include "kernels/dropout/dropout.h"

namespace longspan::kernels::dropout {

LONGSPAN_HOST_DEVICE inline uint64_t KeyOf(const Arguments& arguments, int64_t sequence) {
  uint64_t key = Mix(static_cast<uint64_t>(arguments.seed));
  key = Mix(key ^ static_cast<uint64_t>(arguments.step));
  key = Mix(key ^ static_cast<uint64_t>(arguments.first_sequence + sequence));
  key = Mix(key ^ static_cast<uint64_t>(arguments.layer));
  return Mix(key ^ static_cast<uint64_t>(arguments.module));
}

LONGSPAN_HOST_DEVICE inline bool IsKept(uint64_t key, uint64_t element, uint32_t threshold) {
  return static_cast<uint32_t>(Mix(key ^ element) >> 32) >= threshold;
}

}  // namespace longspan::kernels::dropout
