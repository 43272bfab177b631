// Which token comes next, given the logits of all.
//
// Pure and thread-safe. Drawing is counter-based: the random number is a function of (seed, text, position), so a text
// is drawn the same whatever is generated beside it, and a stopped evaluation goes on as it would have.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace longspan::trainer {

struct Sampling {
  double temperature = 0;  // 0: the most likely token
  double top_p = 1;        // (0, 1]: the fewest most likely tokens that add up to at least this
  uint64_t seed = 0;
};

struct DrawPlace {
  uint64_t text = 0;      // number of the text
  uint64_t position = 0;  // of the new token in it
};

// In [0, 1).
double UniformAt(uint64_t seed, const DrawPlace& place);

// Of equal logits the first counts as the more likely. Requires at least one logit; those that are -infinity are never
// chosen unless all are, NaN never counts.
int64_t ChooseToken(std::span<const float> logits, const Sampling& sampling, const DrawPlace& place);

}  // namespace longspan::trainer
