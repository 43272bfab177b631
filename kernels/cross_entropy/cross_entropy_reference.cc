#include <algorithm>
#include <cmath>

#include "kernels/common/bfloat16.h"
#include "kernels/cross_entropy/cross_entropy.h"

namespace longspan::kernels::cross_entropy {

void LossReference(const Arguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = 0; row < arguments.rows; ++row) {
      T* logits = static_cast<T*>(arguments.logits) + row * arguments.row_stride;
      double largest = static_cast<float>(logits[0]);
      for (int64_t i = 0; i < arguments.vocabulary; ++i) {
        const double logit = static_cast<float>(logits[i]);
        if (!(logit <= largest)) largest = logit;  // NaN stays
      }
      double sum = 0;
      for (int64_t i = 0; i < arguments.vocabulary; ++i) sum += std::exp(static_cast<float>(logits[i]) - largest);
      const int64_t target = arguments.targets[row];
      arguments.loss[row] = std::log(sum) + largest - static_cast<float>(logits[target]);
      if (!arguments.wants_gradient) continue;
      for (int64_t i = 0; i < arguments.vocabulary; ++i) {
        const double probability = std::exp(static_cast<float>(logits[i]) - largest) / sum;
        logits[i] = static_cast<T>(static_cast<float>(probability - (i == target ? 1 : 0)));
      }
    }
  });
}

}  // namespace longspan::kernels::cross_entropy
