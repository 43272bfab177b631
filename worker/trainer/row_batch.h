// From rows of a data set to what a model takes.
#pragma once

#include "worker/trainer/data/dataset.h"
#include "worker/trainer/model/causal_lm.h"

namespace longspan::trainer {

// Rows [first, first + count), as wide as the longest of these: padding that all of them have is left out. The tensors
// are copies. Step and sequence index are the caller's to set.
Batch BatchOf(const Rows& rows, int64_t first, int64_t count);

}  // namespace longspan::trainer
