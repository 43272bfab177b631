// The ranks of a gang as a table: data groups of ranks that share their sequences. Of sequences shared by P ranks each
// rank holds consecutive tokens, the first P-th those with sequence rank 0.
//
//   rank              0    1    2    3    4    5           P = 2
//   data group        0    0    1    1    2    2           a slice of the global batch each
//   rank in sequence  0    1    0    1    0    1           a share of the tokens of every sequence in it
//
// Gradients and losses are added over all ranks alike; only attention knows of the sequence. The communicator outlives
// the table. Not thread-safe. Errors as in communicator.h.
#pragma once

#include <ATen/ATen.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "worker/trainer/parallel/communicator.h"

namespace longspan::trainer {

class SequenceRanks {
 public:
  using Pending = std::unique_ptr<Communicator::Pending>;

  // SpecError unless `ranks_per_sequence` divides the number of ranks.
  SequenceRanks(Communicator& ranks, int64_t ranks_per_sequence);

  int64_t rank() const { return ranks_.rank() % size_; }  // in the sequence
  int64_t size() const { return size_; }                  // P
  int64_t group() const { return ranks_.rank() / size_; }
  int64_t groups() const { return ranks_.world_size() / size_; }

  // As Communicator::StartExchange; `to` and `from` are ranks in the sequence.
  Pending StartExchange(const Communicator::Exchange& exchange);
  // Waits. Nothing where `pending` is null, which it is afterwards.
  void Finish(Pending& pending);

  // Whether any rank of the sequence says so; the same answer on all of them, which all ask.
  bool AnyOf(bool mine);

  // What computation did not hide of exchanges so far.
  double wait_seconds() const {
    return std::chrono::duration<double>(ranks_.use(Collective::kExchange).waited).count();
  }
  int64_t exchanged_bytes() const { return ranks_.exchanged_bytes(); }

 private:
  Communicator& ranks_;
  const int64_t size_;
};

// First token and tokens of each rank's share of sequences of `tokens`: sizes differ by one at most, larger ones first.
struct SequenceShare {
  int64_t first = 0, tokens = 0;
};
std::vector<SequenceShare> SharesOf(int64_t tokens, int64_t ranks);

}  // namespace longspan::trainer
