// Attention by tiles, as flash attention (arXiv 2205.14135, 2307.08691) but for a processor's caches: the weights of 64
// keys at a time are never further away than level 1, all else of a tile not further than level 2. Private to the
// kernel units, as flash_cpu_tiles.h is.
//
// Forward, for up to 256 queries of a head: per tile of 64 keys K is packed transposed and scaled, V as it is;
// then for every 6 queries the scores (6, 64), the running softmax, and what the tile adds to the output. Tiles that no
// query sees are skipped, and so are, at the diagonal, the vectors of scores and the terms of sums that none of the 6
// queries sees.
//
// Backward, for a key/value head: per tile of keys, for every tile of 64 queries of each of its query heads
//   S = Q·K^T   P = exp(S - logsumexp)   dP = dO·V^T   dS = P∘(dP - rowsum(dO∘O))   dQ += dS·K   dV += P^T·dO   dK +=
//   dS^T·Q
// where K is scaled once, when it is packed, which leaves only dK to be scaled at the end.
//
// A query's sums take the same steps wherever it lies in a strip, a task or a batch: all results are bit-equal.
#pragma once

#include "worker/trainer/attention/flash_cpu_tiles.h"

namespace longspan::trainer {
namespace {

// Rows in scratch are padded to whole vectors.
inline int64_t PaddedSize(int64_t head_dim) { return CeilDiv(head_dim, kFlashVectorFloatsMax) * kFlashVectorFloatsMax; }

// Hands out pieces of a thread's scratch.
struct ScratchPieces {
  float* next;
  float* Take(int64_t floats) {
    float* piece = next;
    next += floats;
    return piece;
  }
};

struct ForwardScratch {
  int64_t size;    // of a padded row
  float* keys;     // (D, 64), transposed and scaled
  float* values;   // (64, size)
  float* out;      // (256, size), not yet divided by the weights' sum
  float* scores;   // (6, 64); then weights
  float* highest;  // (256) of the scores so far
  float* totals;   // (256, vector) sums of the weights so far
};

inline ForwardScratch SplitForwardScratch(const FlashProblem& problem, float* scratch) {
  ScratchPieces pieces{scratch};
  ForwardScratch split;
  split.size = PaddedSize(problem.head_dim);
  split.keys = pieces.Take(kFlashTile * split.size);
  split.values = pieces.Take(kFlashTile * split.size);
  split.out = pieces.Take(kFlashForwardRows * split.size);
  split.scores = pieces.Take(kFlashStripRows * kFlashTile);
  split.highest = pieces.Take(kFlashForwardRows + kFlashVectorFloatsMax);
  split.totals = pieces.Take(kFlashForwardRows * kFlashVectorFloatsMax);
  return split;
}

// What the queries of a tile see of its keys: query r the first min(keys, r + 1 + offset).
struct Sight {
  int64_t keys;
  int64_t offset;  // kFlashTile or more: all keys
  int64_t Of(int64_t row) const { return Min(keys, row + 1 + offset); }
};

inline Sight SightOf(bool causal, int64_t keys, int64_t offset) { return {keys, causal ? offset : kFlashTile}; }

template <typename Simd>
float HighestScore(const float* scores, int64_t seen) {
  constexpr int kWidth = Simd::kWidth;
  typename Simd::Vector highest = Simd::Set(-__builtin_inff());
  int64_t i = 0;
  for (; i + kWidth <= seen; i += kWidth) highest = Simd::Max(highest, Simd::Load(scores + i));
  if (i < seen) {
    highest = Simd::Max(highest, Simd::KeepFirst(Simd::Load(scores + i), seen - i, Simd::Set(-__builtin_inff())));
  }
  return Simd::HighestOf(highest);
}

// Turns a row of scores into weights; returns their sums, lane by lane.
template <typename Simd>
typename Simd::Vector WeightsFromScores(float* scores, int64_t seen, float highest) {
  constexpr int kWidth = Simd::kWidth;
  const typename Simd::Vector reference = Simd::Set(highest);
  typename Simd::Vector total = Simd::Zero();
  int64_t i = 0;
  for (; i + kWidth <= seen; i += kWidth) {
    const typename Simd::Vector weights = Simd::Exp(Simd::Subtract(Simd::Load(scores + i), reference));
    total = Simd::Add(total, weights);
    Simd::Store(scores + i, weights);
  }
  if (i < seen) {
    const typename Simd::Vector weights =
        Simd::KeepFirst(Simd::Exp(Simd::Subtract(Simd::Load(scores + i), reference)), seen - i, Simd::Zero());
    total = Simd::Add(total, weights);
    Simd::Store(scores + i, weights);
  }
  return total;
}

// Scores of up to 6 queries become weights; what the queries summed up before counts decay[row] times from now on.
template <typename Simd>
void RunSoftmax(const ForwardScratch& scratch, int64_t first, int64_t rows, const Sight& sight, bool fresh,
                float* decay) {
  alignas(64) float before[kFlashVectorFloatsMax] = {};
  alignas(64) float after[kFlashVectorFloatsMax] = {};
  for (int64_t row = 0; row < rows; ++row) {
    const float here = HighestScore<Simd>(scratch.scores + row * kFlashTile, sight.Of(row));
    before[row] = fresh ? here : scratch.highest[first + row];
    after[row] = before[row] > here ? before[row] : here;
    scratch.highest[first + row] = after[row];
  }
  Simd::Store(decay, Simd::Exp(Simd::Subtract(Simd::Load(before), Simd::Load(after))));
  for (int64_t row = 0; row < rows; ++row) {
    float* scores = scratch.scores + row * kFlashTile;
    float* total = scratch.totals + (first + row) * Simd::kWidth;
    const typename Simd::Vector here = WeightsFromScores<Simd>(scores, sight.Of(row), after[row]);
    Simd::Store(total, fresh ? here : Simd::MultiplyAdd(Simd::Set(decay[row]), Simd::Load(total), here));
    for (int64_t i = CeilDiv(sight.Of(row), Simd::kWidth) * Simd::kWidth; i < sight.Of(rows - 1); ++i) scores[i] = 0;
  }
}

// Up to 6 queries against the packed keys: `first` the first row of the strip within the task.
template <typename Simd>
void ForwardStrip(const ForwardScratch& scratch, const float* q, int64_t q_stride, int64_t head_dim, int64_t first,
                  int64_t rows, const Sight& sight, bool fresh) {
  const int64_t seen = sight.Of(rows - 1);
  alignas(64) float decay[kFlashVectorFloatsMax];
  MultiplyStrip<Simd, false>({q, q_stride, scratch.keys, kFlashTile, scratch.scores, kFlashTile, head_dim}, rows,
                             CeilDiv(seen, Simd::kWidth));
  RunSoftmax<Simd>(scratch, first, rows, sight, fresh, decay);
  MultiplyStrip<Simd, false>(
      {scratch.scores, kFlashTile, scratch.values, scratch.size, scratch.out + first * scratch.size, scratch.size, seen,
       fresh ? Into::kOverwrite : Into::kDecayAndAdd, decay},
      rows, CeilDiv(head_dim, Simd::kWidth));
}

template <typename Simd>
void Forward(const FlashProblem& problem, int64_t task, float* memory) {
  const ForwardScratch scratch = SplitForwardScratch(problem, memory);
  const int64_t heads = problem.blocks * problem.query_heads;
  const int64_t chunk = CeilDiv(problem.length, kFlashForwardRows) - 1 - task / heads;  // the longest first
  const int64_t block = task % heads / problem.query_heads;
  const int64_t head = task % heads % problem.query_heads;
  const int64_t key_value_head = head / (problem.query_heads / problem.key_value_heads);
  const int64_t first_row = chunk * kFlashForwardRows;
  const int64_t rows = Min(kFlashForwardRows, problem.length - first_row);
  const int64_t size = problem.head_dim;
  const float* q = At(problem.q, block, head, first_row);

  bool fresh = true;
  for (int index = 0; index < problem.segment_count; ++index) {
    const FlashSegment& segment = problem.segments[index];
    const int64_t keys_end = segment.causal ? first_row + rows : segment.length;
    for (int64_t first_key = 0; first_key < keys_end; first_key += kFlashTile) {
      const int64_t keys = Min(kFlashTile, segment.length - first_key);
      PackColumns<Simd>(At(segment.k, block, key_value_head, first_key), segment.k.row_stride, keys, size,
                        problem.scale, scratch.keys);
      PackRows<Simd>(At(segment.v, block, key_value_head, first_key), segment.v.row_stride, keys, size, 1.0f,
                     scratch.values, scratch.size);
      const int64_t start = segment.causal && first_key > first_row ? first_key - first_row : 0;
      ForStrips(rows - start, [&](int64_t row, int64_t strip_rows) {
        row += start;
        ForwardStrip<Simd>(scratch, q + row * problem.q.row_stride, problem.q.row_stride, size, row, strip_rows,
                           SightOf(segment.causal, keys, first_row + row - first_key), fresh);
      });
      fresh = false;
    }
  }

  for (int64_t row = 0; row < rows; ++row) {
    const float total = Simd::SumOf(Simd::Load(scratch.totals + row * Simd::kWidth));
    *At(problem.logsumexp, block, head, first_row + row) = scratch.highest[row] + __builtin_logf(total);
    UnpackRows<Simd>(scratch.out + row * scratch.size, scratch.size, 1, size, 1.0f / total, false,
                     At(problem.out, block, head, first_row + row), problem.out.row_stride);
  }
}

struct BackwardScratch {
  int64_t size;                          // of a padded row
  float *keys_columns, *values_columns;  // (D, 64), transposed; keys scaled
  float* keys;                           // (64, size), scaled
  float *dk, *dv;                        // (64, size); dk not yet scaled
  float *q, *dout;                       // (64, size)
  float *weights, *dscores;              // (64, 64)
  float *logsumexp, *delta;              // (64); delta the rows' sums of dout·out
  float* dq;                             // (6, size)
};

inline BackwardScratch SplitBackwardScratch(const FlashProblem& problem, float* scratch) {
  ScratchPieces pieces{scratch};
  BackwardScratch split;
  split.size = PaddedSize(problem.head_dim);
  for (float** tile :
       {&split.keys_columns, &split.values_columns, &split.keys, &split.dk, &split.dv, &split.q, &split.dout}) {
    *tile = pieces.Take(kFlashTile * split.size);
  }
  split.weights = pieces.Take(kFlashTile * kFlashTile);
  split.dscores = pieces.Take(kFlashTile * kFlashTile);
  split.logsumexp = pieces.Take(kFlashTile);
  split.delta = pieces.Take(kFlashTile);
  split.dq = pieces.Take(kFlashStripRows * split.size);
  return split;
}

// Where a tile lies.
struct TilePlace {
  int64_t block, head, first_row, rows;
};

template <typename Simd>
void PackQueries(const FlashProblem& problem, const TilePlace& place, const BackwardScratch& scratch) {
  const int64_t size = problem.head_dim;
  PackRows<Simd>(At(problem.q, place.block, place.head, place.first_row), problem.q.row_stride, place.rows, size, 1.0f,
                 scratch.q, scratch.size);
  PackRows<Simd>(At(problem.dout, place.block, place.head, place.first_row), problem.dout.row_stride, place.rows, size,
                 1.0f, scratch.dout, scratch.size);
  for (int64_t row = 0; row < place.rows; ++row) {
    const float* out = At(problem.out, place.block, place.head, place.first_row + row);
    const float* dout = scratch.dout + row * scratch.size;
    typename Simd::Vector sum = Simd::Zero();
    int64_t i = 0;
    for (; i + Simd::kWidth <= size; i += Simd::kWidth) {
      sum = Simd::MultiplyAdd(Simd::Load(out + i), Simd::Load(dout + i), sum);
    }
    if (i < size) sum = Simd::MultiplyAdd(Simd::LoadFirst(out + i, size - i), Simd::Load(dout + i), sum);
    scratch.delta[row] = Simd::SumOf(sum);
    scratch.logsumexp[row] = *At(problem.logsumexp, place.block, place.head, place.first_row + row);
  }
}

// A row of scores becomes weights, and one of dP becomes dS; both zero where the query does not see.
template <typename Simd>
void WeightsAndGradients(float* weights, float* dscores, int64_t seen, int64_t keys, float logsumexp, float delta) {
  constexpr int kWidth = Simd::kWidth;
  const typename Simd::Vector logsumexps = Simd::Set(logsumexp);
  const typename Simd::Vector deltas = Simd::Set(delta);
  int64_t i = 0;
  for (; i + kWidth <= seen; i += kWidth) {
    const typename Simd::Vector p = Simd::Exp(Simd::Subtract(Simd::Load(weights + i), logsumexps));
    Simd::Store(weights + i, p);
    Simd::Store(dscores + i, Simd::Multiply(p, Simd::Subtract(Simd::Load(dscores + i), deltas)));
  }
  if (i < seen) {
    const typename Simd::Vector p =
        Simd::KeepFirst(Simd::Exp(Simd::Subtract(Simd::Load(weights + i), logsumexps)), seen - i, Simd::Zero());
    const typename Simd::Vector difference =
        Simd::KeepFirst(Simd::Subtract(Simd::Load(dscores + i), deltas), seen - i, Simd::Zero());
    Simd::Store(weights + i, p);
    Simd::Store(dscores + i, Simd::Multiply(p, difference));
    i += kWidth;
  }
  for (; i < keys; i += kWidth) {
    Simd::Store(weights + i, Simd::Zero());
    Simd::Store(dscores + i, Simd::Zero());
  }
}

template <typename Simd>
void AddQueryGradients(const FlashProblem& problem, const TilePlace& place, const BackwardScratch& scratch,
                       const Sight& sight, bool adds) {
  const int64_t size = problem.head_dim;
  const int64_t vectors = CeilDiv(size, Simd::kWidth);
  const Into into = adds ? Into::kAdd : Into::kOverwrite;
  ForStrips(place.rows, [&](int64_t row, int64_t rows) {
    const float* dscores = scratch.dscores + row * kFlashTile;
    const int64_t seen = sight.Of(row + rows - 1);
    float* dq = At(problem.dq, place.block, place.head, place.first_row + row);
    if (size % Simd::kWidth == 0) {
      MultiplyStrip<Simd, false>(
          {dscores, kFlashTile, scratch.keys, scratch.size, dq, problem.dq.row_stride, seen, into}, rows, vectors);
    } else {
      MultiplyStrip<Simd, false>({dscores, kFlashTile, scratch.keys, scratch.size, scratch.dq, scratch.size, seen},
                                 rows, vectors);
      UnpackRows<Simd>(scratch.dq, scratch.size, rows, size, 1.0f, adds, dq, problem.dq.row_stride);
    }
  });
}

// to (keys, size) += rows^T (keys, queries) · from (queries, size)
template <typename Simd>
void AddKeyGradients(const float* rows_by_key, const float* from, const BackwardScratch& scratch, int64_t queries,
                     const Sight& sight, int64_t vectors, Into into, float* to) {
  ForStrips(sight.keys, [&](int64_t key, int64_t keys) {
    const int64_t first = sight.offset >= kFlashTile ? 0 : key;  // earlier queries do not see these keys
    MultiplyStrip<Simd, true>({rows_by_key + first * kFlashTile + key, kFlashTile, from + first * scratch.size,
                               scratch.size, to + key * scratch.size, scratch.size, queries - first, into},
                              keys, vectors);
  });
}

// What a tile of queries and the packed tile of keys, seen as `sight` says, do to each other.
template <typename Simd>
void BackwardTile(const FlashProblem& problem, const TilePlace& place, const BackwardScratch& scratch,
                  const Sight& sight, bool first_row_is_alone, bool adds_to_dq, bool adds_to_keys) {
  PackQueries<Simd>(problem, place, scratch);
  const auto scores = [&](const float* queries, const float* columns, float* to) {
    ForStrips(place.rows, [&](int64_t row, int64_t rows) {
      MultiplyStrip<Simd, false>({queries + row * scratch.size, scratch.size, columns, kFlashTile,
                                  to + row * kFlashTile, kFlashTile, problem.head_dim},
                                 rows, CeilDiv(sight.Of(row + rows - 1), Simd::kWidth));
    });
  };
  scores(scratch.q, scratch.keys_columns, scratch.weights);
  scores(scratch.dout, scratch.values_columns, scratch.dscores);
  for (int64_t row = 0; row < place.rows; ++row) {
    WeightsAndGradients<Simd>(scratch.weights + row * kFlashTile, scratch.dscores + row * kFlashTile, sight.Of(row),
                              sight.keys, scratch.logsumexp[row], scratch.delta[row]);
  }
  if (first_row_is_alone) {
    scratch.weights[0] = 1.0f;  // its one weight does not move: no rounding where the gradient is exactly zero
    scratch.dscores[0] = 0.0f;
  }
  AddQueryGradients<Simd>(problem, place, scratch, sight, adds_to_dq);
  const int64_t vectors = CeilDiv(problem.head_dim, Simd::kWidth);
  const Into into = adds_to_keys ? Into::kAdd : Into::kOverwrite;
  AddKeyGradients<Simd>(scratch.weights, scratch.dout, scratch, place.rows, sight, vectors, into, scratch.dv);
  AddKeyGradients<Simd>(scratch.dscores, scratch.q, scratch, place.rows, sight, vectors, into, scratch.dk);
}

template <typename Simd>
void PackKeys(const FlashProblem& problem, const FlashSegment& segment, const TilePlace& place,
              const BackwardScratch& scratch) {
  const float* k = At(segment.k, place.block, place.head, place.first_row);
  const float* v = At(segment.v, place.block, place.head, place.first_row);
  PackColumns<Simd>(k, segment.k.row_stride, place.rows, problem.head_dim, problem.scale, scratch.keys_columns);
  PackColumns<Simd>(v, segment.v.row_stride, place.rows, problem.head_dim, 1.0f, scratch.values_columns);
  PackRows<Simd>(k, segment.k.row_stride, place.rows, problem.head_dim, problem.scale, scratch.keys, scratch.size);
}

template <typename Simd>
void Backward(const FlashProblem& problem, int64_t task, float* memory) {
  const BackwardScratch scratch = SplitBackwardScratch(problem, memory);
  const int64_t block = task / problem.key_value_heads;
  const int64_t key_value_head = task % problem.key_value_heads;
  const int64_t heads = problem.query_heads / problem.key_value_heads;
  for (int index = 0; index < problem.segment_count; ++index) {
    const FlashSegment& segment = problem.segments[index];
    for (int64_t first_key = 0; first_key < segment.length; first_key += kFlashTile) {
      const int64_t keys = Min(kFlashTile, segment.length - first_key);
      PackKeys<Simd>(problem, segment, {block, key_value_head, first_key, keys}, scratch);
      const bool adds_to_dq = problem.adds_to_dq || index > 0 || first_key > 0;  // the first tile sees all queries
      bool adds_to_keys = false;
      for (int64_t head = key_value_head * heads; head < (key_value_head + 1) * heads; ++head) {
        const int64_t first_query = segment.causal ? first_key : 0;
        for (int64_t row = first_query; row < problem.length; row += kFlashTile) {
          const bool alone = segment.causal && problem.segment_count == 1 && !problem.joined && row == 0;
          BackwardTile<Simd>(problem, {block, head, row, Min(kFlashTile, problem.length - row)}, scratch,
                             SightOf(segment.causal, keys, row - first_key), alone, adds_to_dq, adds_to_keys);
          adds_to_keys = true;
        }
      }
      UnpackRows<Simd>(scratch.dk, scratch.size, keys, problem.head_dim, problem.scale, segment.adds,
                       At(segment.dk, block, key_value_head, first_key), segment.dk.row_stride);
      UnpackRows<Simd>(scratch.dv, scratch.size, keys, problem.head_dim, 1.0f, segment.adds,
                       At(segment.dv, block, key_value_head, first_key), segment.dv.row_stride);
    }
  }
}

}  // namespace
}  // namespace longspan::trainer
