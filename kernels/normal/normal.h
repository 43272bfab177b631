// Numbers of a normal distribution by counter: element i is a pure function of (key, i), the same bits on the host and
// on any GPU, whatever draws beside it. A model's random weights are made where they are to lie.
//
//   p      ((Mix(key ^ i) >> 12) + 1/2) / 2^52, Mix the finaliser of SplitMix64 (Steele, Lea, Flood 2014)
//   value  deviation · z, z where the distribution function is p: algorithm AS241 (Wichura 1988), relative error 1e-15;
//          rounded to fp32, then to the element type
//
// All of it in additions, products, quotients and roots of doubles that are rounded one by one (draw.h).
#pragma once

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels::normal {

struct Arguments {
  ElementType type = ElementType::kFloat32;
  uint64_t key = 0;
  int64_t first = 0, elements = 0;  // i from `first` on
  double deviation = 1;
  void* out = nullptr;  // element `first`
};

// On host memory.
void DrawReference(const Arguments& arguments);

}  // namespace longspan::kernels::normal
