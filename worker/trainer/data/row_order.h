// In which order training visits its rows: a pure function of (seed, place), computed without a table of the epoch.
//
// Places count from 0 over all steps: step s of a global batch of b rows has the places [s·b, (s + 1)·b). Each epoch of
// n places visits every row once, in its own order. Immutable and thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/trainer/data/row_plan.h"

namespace longspan::trainer {

// Position `index` of a pseudo-random order of [0, count) that `key` names: a bijection, computed without a table.
// Pure, the same on every machine. Requires 0 <= index < count.
int64_t Permute(int64_t index, int64_t count, uint64_t key);

class RowOrder {
 public:
  // Any row in any batch.
  explicit RowOrder(int64_t rows) : rows_(rows) {}
  // Buckets: the rows of a batch do similar work (RowPlan::RowWork). Rows are sorted by it once; an epoch shuffles them
  // within neighbourhoods of 8 batches, cuts batches, and shuffles the batches. One batch of an epoch has what the
  // epoch before left over, and the longest rows of both.
  static RowOrder Bucketed(const RowPlan& plan);

  // Rows of the global batch of a step, in order.
  std::vector<int64_t> Step(uint64_t seed, int64_t step, int64_t global_batch) const;

 private:
  int64_t BucketedRow(uint64_t key, int64_t epoch, int64_t index, int64_t global_batch) const;

  int64_t rows_ = 0;
  std::vector<int64_t> by_work_;  // empty: no buckets
};

}  // namespace longspan::trainer
