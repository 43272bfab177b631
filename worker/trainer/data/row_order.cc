#include "worker/trainer/data/row_order.h"

#include <algorithm>
#include <numeric>

#include "proto/support/check.h"
#include "worker/trainer/data/mix.h"

namespace longspan::trainer {
namespace {

constexpr int64_t kBatchesOfNeighbourhood = 8;

}  // namespace

// A Feistel network over the smallest even number of bits that holds count - 1; values outside are sent round again
// (cycle walking), which ends because the network is a bijection. At most 4 times as many values as count, so 4 rounds
// on average at worst.
int64_t Permute(int64_t index, int64_t count, uint64_t key) {
  CHECK(index >= 0 && index < count);
  int half_bits = 1;
  while ((int64_t{1} << (2 * half_bits)) < count) ++half_bits;
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  auto value = static_cast<uint64_t>(index);
  do {
    uint64_t left = value >> half_bits;
    uint64_t right = value & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t next = left ^ (Mix(key ^ Mix(right << 8 | round)) & mask);
      left = right;
      right = next;
    }
    value = left << half_bits | right;
  } while (value >= static_cast<uint64_t>(count));
  return static_cast<int64_t>(value);
}

RowOrder RowOrder::Bucketed(const RowPlan& plan) {
  RowOrder order(plan.rows());
  std::vector<double> work(static_cast<size_t>(plan.rows()));
  for (int64_t row = 0; row < plan.rows(); ++row) work[static_cast<size_t>(row)] = plan.RowWork(row);
  order.by_work_.resize(work.size());
  std::iota(order.by_work_.begin(), order.by_work_.end(), int64_t{0});
  std::stable_sort(order.by_work_.begin(), order.by_work_.end(),
                   [&](int64_t a, int64_t b) { return work[static_cast<size_t>(a)] < work[static_cast<size_t>(b)]; });
  return order;
}

std::vector<int64_t> RowOrder::Step(uint64_t seed, int64_t step, int64_t global_batch) const {
  std::vector<int64_t> rows;
  rows.reserve(static_cast<size_t>(global_batch));
  for (int64_t place = step * global_batch; place < (step + 1) * global_batch; ++place) {
    const int64_t epoch = place / rows_;
    const uint64_t key = Mix(seed) ^ Mix(~static_cast<uint64_t>(epoch));
    const int64_t index = place % rows_;
    rows.push_back(by_work_.empty() ? Permute(index, rows_, key) : BucketedRow(key, epoch, index, global_batch));
  }
  return rows;
}

// The epoch is: what completes the batch that the epoch before began, whole batches in shuffled order, the rest. Its
// partial batches at both ends take the rows with the most work, so that what meets in one batch is alike.
int64_t RowOrder::BucketedRow(uint64_t key, int64_t epoch, int64_t index, int64_t global_batch) const {
  const int64_t first_place = epoch * rows_;
  const int64_t completes = std::min((global_batch - first_place % global_batch) % global_batch, rows_);
  const int64_t batches = (rows_ - completes) / global_batch;
  const int64_t in_batches = batches * global_batch;
  int64_t rank = index;  // among the rows sorted by work; the rest after the whole batches stays where it is
  if (index < completes) {
    rank = in_batches + index;
  } else if (index < completes + in_batches) {
    const int64_t batch = (index - completes) / global_batch;
    rank = Permute(batch, batches, key) * global_batch + (index - completes) % global_batch;
  }
  const int64_t size_max = kBatchesOfNeighbourhood * global_batch;
  const int64_t neighbourhood = rank / size_max;
  const int64_t begin = neighbourhood * size_max;
  const int64_t size = std::min(size_max, rows_ - begin);
  const int64_t moved = Permute(rank - begin, size, key ^ Mix(static_cast<uint64_t>(neighbourhood)));
  return by_work_[static_cast<size_t>(begin + moved)];
}

}  // namespace longspan::trainer
