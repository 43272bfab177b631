#include <cmath>

#include "kernels/common/bfloat16.h"
#include "kernels/swiglu/swiglu.h"

namespace longspan::kernels::swiglu {
namespace {

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

}  // namespace

void ForwardReference(const ForwardArguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = 0; row < arguments.rows; ++row) {
      const T* gates = static_cast<const T*>(arguments.gate_up) + row * arguments.gate_up_stride;
      T* out = static_cast<T*>(arguments.out) + row * arguments.out_stride;
      for (int64_t i = 0; i < arguments.size; ++i) {
        const auto gate = static_cast<float>(gates[i]), up = static_cast<float>(gates[arguments.size + i]);
        out[i] = static_cast<T>(gate * Sigmoid(gate) * up);
      }
    }
  });
}

void BackwardReference(const BackwardArguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = 0; row < arguments.rows; ++row) {
      const T* gates = static_cast<const T*>(arguments.gate_up) + row * arguments.gate_up_stride;
      const T* out_gradient = static_cast<const T*>(arguments.out_gradient) + row * arguments.out_gradient_stride;
      T* gradient = static_cast<T*>(arguments.gate_up_gradient) + row * arguments.gate_up_gradient_stride;
      for (int64_t i = 0; i < arguments.size; ++i) {
        const auto gate = static_cast<float>(gates[i]), up = static_cast<float>(gates[arguments.size + i]);
        const auto d = static_cast<float>(out_gradient[i]);
        const float s = Sigmoid(gate);
        gradient[i] = static_cast<T>(d * up * s * (1.0f + gate * (1.0f - s)));
        gradient[arguments.size + i] = static_cast<T>(d * gate * s);
      }
    }
  });
}

}  // namespace longspan::kernels::swiglu
