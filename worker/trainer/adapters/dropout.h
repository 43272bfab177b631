// LoRA's dropout by a counter-based mask: whether an element is kept is a pure function of (seed, step, sequence in the
// global batch, layer, module, element). So a recomputed forward pass, another tile size or another number of ranks see
// the same mask.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace longspan::trainer {

// One pass of a batch. rate 0: no dropout.
struct DropoutPass {
  double rate = 0;
  int64_t seed = 0;
  int64_t step = 0;
  int64_t first_sequence_index = 0;  // of row 0, in the global batch
  int64_t tokens = 0;                // rows of a sequence
  int64_t first_token = 0;           // of the first of them, where a sequence has more tokens than rows here

  bool active() const { return rate > 0; }
};

// Which module, and which of the batch's rows a tile starts with.
struct DropoutSite {
  int64_t layer = 0;
  int64_t module = 0;  // index among the linear layers of the decoder layer
  int64_t first_row = 0;
};

// out = x with dropped elements 0 and kept ones divided by 1 - rate. x, out (n, in); may be the same tensor.
void ApplyDropout(const DropoutPass& pass, const DropoutSite& site, const at::Tensor& x, const at::Tensor& out);

}  // namespace longspan::trainer
