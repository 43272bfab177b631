// out = silu(gate) ∘ up, the activation of a gated MLP (SwiGLU, arXiv 2002.05202), and its gradients:
//
//   s = 1 / (1 + exp(-gate))    out = gate·s·up
//   d gate = d out · up · s · (1 + gate·(1 - s))    d up = d out · gate · s
//
// A row holds F gates, then F ups. Rows may be apart by any stride >= their length, in elements; elements of a row are
// next to each other. Arithmetic is fp32; one rounding to the type. Outputs are overwritten. No workspace.
// Deterministic. Any rows >= 0 and F >= 1; fast where pointers are aligned to 16 bytes and F and strides are multiples
// of 16 bytes.
#pragma once

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels::swiglu {

struct ForwardArguments {
  ElementType type = ElementType::kFloat32;
  int64_t rows = 0, size = 0;     // size: F
  const void* gate_up = nullptr;  // (rows, 2F)
  int64_t gate_up_stride = 0;
  void* out = nullptr;  // (rows, F)
  int64_t out_stride = 0;
};

struct BackwardArguments {
  ElementType type = ElementType::kFloat32;
  int64_t rows = 0, size = 0;
  const void* gate_up = nullptr;  // (rows, 2F)
  int64_t gate_up_stride = 0;
  const void* out_gradient = nullptr;  // (rows, F)
  int64_t out_gradient_stride = 0;
  void* gate_up_gradient = nullptr;  // (rows, 2F); may be gate_up itself
  int64_t gate_up_gradient_stride = 0;
};

// On host memory.
void ForwardReference(const ForwardArguments& arguments);
void BackwardReference(const BackwardArguments& arguments);

}  // namespace longspan::kernels::swiglu
