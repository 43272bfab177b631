// How sequences that go on are cut into passes through the model: tiles of tokens, so that a prompt of any length needs
// no more memory than its cache and one tile.
//
// Pure. A pass takes rows from the sequences in their order until it is full, so short prompts share a pass, single
// tokens of many sequences are one pass, and a long prompt takes several.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "worker/trainer/attention/cached_attention.h"

namespace longspan::trainer {

// Tokens behind what a cache holds.
struct Continuation {
  KeyValueCache* cache = nullptr;  // not owned
  std::vector<int64_t> tokens;     // at least one
};

struct ContinuationPass {
  struct Rows {
    size_t sequence = 0;         // index of the Continuation
    int64_t first_token = 0;     // within it
    int64_t first_row = 0;       // within the pass
    int64_t rows = 0;            // at least one
    int64_t first_position = 0;  // in the text: what the cache held before, and first_token
    bool last = false;           // its last row is the sequence's last token
  };
  std::vector<Rows> parts;
  int64_t rows = 0;
};

// Throws c10::Error when a sequence has no token or a cache has no room for its own.
std::vector<ContinuationPass> PlanContinuation(const std::vector<Continuation>& sequences, int64_t rows_max);

// (rows) int64 ids of a pass.
at::Tensor IdsOf(const std::vector<Continuation>& sequences, const ContinuationPass& pass);

}  // namespace longspan::trainer
