// Cross-entropy of a tile of logits, and its gradient in their place, in one pass over the tile:
//
//   loss[row] = log(sum(exp(logits))) - logits[target]      logits becomes softmax(logits) - one-hot(target)
//
// The sum of exponentials is fp32, relative to the row's largest logit; the loss is fp64 of that. A row with a logit
// that is not finite has a loss and gradients that are not. Deterministic. No workspace. Any rows >= 0; 1 <= vocabulary
// < 2^31.
#pragma once

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels::cross_entropy {

struct Arguments {
  ElementType type = ElementType::kFloat32;
  int64_t rows = 0, vocabulary = 0;
  void* logits = nullptr;  // (rows, vocabulary), rows row_stride apart; overwritten where wants_gradient
  int64_t row_stride = 0;
  const int64_t* targets = nullptr;  // (rows), each in [0, vocabulary)
  double* loss = nullptr;            // (rows), nats
  bool wants_gradient = true;
};

// On host memory.
void LossReference(const Arguments& arguments);

}  // namespace longspan::kernels::cross_entropy
