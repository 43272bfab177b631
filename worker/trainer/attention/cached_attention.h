// Causal full attention of new tokens to all tokens before them, whose keys and values lie in a cache. What text
// generation runs on; never used in training.
//
// A pass may hold rows of several sequences, of any number each: whole tiles of a prompt beside single tokens. Nothing
// is padded, and no mask over a whole sequence exists:
//
//   one new token     its query heads attend to everything in one dense call, grouped by the key/value head they share
//   a tile of tokens  one dense call over what was there before the tile, one causal call within the tile, and the two
//                     results are added with weights from their log-sum-exps, which is exact beyond rounding
//
// Legend: n rows (new tokens), Hq query heads, Hkv key/value heads, D head size.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace longspan::trainer {

// Keys (RoPE applied) and values of one sequence, for every layer. Room for `tokens_max` tokens is taken when a layer
// first appends, in the type of what is appended: 2 · layers · tokens_max · Hkv · D elements in all. Not thread-safe.
class KeyValueCache {
 public:
  explicit KeyValueCache(int64_t tokens_max);

  int64_t tokens() const { return tokens_; }  // that every layer holds
  int64_t tokens_max() const { return tokens_max_; }
  // Behind what `layer` holds: k, v (n, Hkv, D).
  void Append(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  // The newest n tokens were appended to every layer.
  void Advance(int64_t n);

  // (tokens() + appended, Hkv, D), `appended` the rows that Append added since the last Advance.
  at::Tensor Keys(int64_t layer, int64_t appended) const;
  at::Tensor Values(int64_t layer, int64_t appended) const;

 private:
  struct Layer {
    at::Tensor keys, values;  // (tokens_max, Hkv, D)
  };
  int64_t tokens_ = 0;
  int64_t tokens_max_ = 0;
  std::vector<Layer> layers_;
};

// Rows [first_row, first_row + rows) of a pass follow what `cache` holds.
struct CachedRows {
  KeyValueCache* cache = nullptr;  // not owned; each cache at most once in a pass
  int64_t first_row = 0;
  int64_t rows = 0;
};

struct CachedAttention {
  std::vector<CachedRows> sequences;
};

struct CachedLayer {
  int64_t index = 0;
  int64_t window = 0;  // a token sees itself and the window - 1 before it; 0: all
};

// Appends k, v to the caches and writes out (n, Hq, D). q (n, Hq, D), k and v (n, Hkv, D): views whose last stride is
// 1. The caller advances the caches after the last layer.
void AttendCached(const CachedAttention& pass, const CachedLayer& layer, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, const at::Tensor& out);

}  // namespace longspan::trainer
