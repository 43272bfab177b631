#include <cmath>

#include "kernels/adamw/adamw.h"
#include "kernels/common/bfloat16.h"

namespace longspan::kernels::adamw {

void StepReference(const Update& update, const Tensor* tensors, int64_t count) {
  const double correction1 = 1 - std::pow(update.beta1, static_cast<double>(update.step));
  const double correction2 = 1 - std::pow(update.beta2, static_cast<double>(update.step));
  for (const Tensor* tensor = tensors; tensor != tensors + count; ++tensor) {
    for (int64_t i = 0; i < tensor->elements; ++i) {
      const double gradient = tensor->gradient[i] * update.gradient_scale;
      double value = tensor->master[i] * (1 - update.rate * update.decay);
      const double first = update.beta1 * tensor->first_moment[i] + (1 - update.beta1) * gradient;
      const double second = update.beta2 * tensor->second_moment[i] + (1 - update.beta2) * gradient * gradient;
      value -= update.rate / correction1 * first / (std::sqrt(second) / std::sqrt(correction2) + update.epsilon);
      tensor->master[i] = static_cast<float>(value);
      tensor->first_moment[i] = static_cast<float>(first);
      tensor->second_moment[i] = static_cast<float>(second);
      if (tensor->value == nullptr) continue;
      WithHostType(update.value_type, [&](auto tag) {
        using T = decltype(tag);
        static_cast<T*>(tensor->value)[i] = static_cast<T>(tensor->master[i]);
      });
    }
  }
}

}  // namespace longspan::kernels::adamw
