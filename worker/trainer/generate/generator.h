// Continues texts token by token: full attention over a key/value cache, several texts at once.
//
// A fixed number of texts is under way at any time. Each step takes one token for all of them in one pass; when a text
// ends, the next one enters with its whole prompt, read in tiles (model/continuation.h). Texts have their own lengths
// and caches: nothing is padded. What is generated depends on the other texts only by rounding of the matrix products.
//
// Positions follow CausalLm::EvaluationOptions: the folder's own or the job's. Where positions depend on the length of
// the text (rope kind dynamic), the prompt is turned as one text of its length and every new token as the last of a
// text one longer; keys stay as they were turned, as transformers' generate does for a single text.
//
// Not thread-safe. Memory: the caches of the texts under way, each of prompt + max_new_tokens tokens, and one tile.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "worker/trainer/generate/sampling.h"
#include "worker/trainer/model/causal_lm.h"

namespace longspan::trainer {

struct Prompt {
  std::vector<int64_t> tokens;  // at least one
  int64_t max_new_tokens = 0;   // at least one
};

struct GenerationOptions {
  CausalLm::EvaluationOptions model;
  Sampling sampling;
  int64_t batch = 4;               // texts under way at once
  std::vector<int64_t> end_ids;    // a text ends with any of these, which is not part of it
  int64_t min_new_tokens = 0;      // so many tokens are none of end_ids
  std::vector<std::string> stops;  // a text ends as soon as its new part has one of these in it; needs `decode`
  std::function<std::string(const std::vector<int64_t>&)> decode;
};

struct GeneratedText {
  enum class End { kEndToken, kStop, kLength };
  std::vector<int64_t> tokens;  // what was generated, without the end token; a stop text is still in it
  End end = End::kLength;
};

struct GenerationHooks {
  std::function<void(size_t index, const GeneratedText&)> done;  // as each text ends, not in order
  std::function<bool()> stop_requested;                          // asked once a step
};

struct GenerationResult {
  std::vector<GeneratedText> texts;  // in the order of the prompts
  bool stopped = false;              // on request: the texts are not all there
};

// `first_text` is the number of the first prompt for drawing (sampling.h).
GenerationResult Generate(CausalLm& model, const std::vector<Prompt>& prompts, const GenerationOptions& options,
                          const GenerationHooks& hooks = {}, uint64_t first_text = 0);

}  // namespace longspan::trainer
