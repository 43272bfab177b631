#include "worker/trainer/parallel/sequence_ranks.h"

#include <string>

#include "worker/trainer/errors.h"

namespace longspan::trainer {

SequenceRanks::SequenceRanks(Communicator& ranks, int64_t ranks_per_sequence)
    : ranks_(ranks), size_(ranks_per_sequence) {
  if (size_ < 1 || ranks.world_size() % size_ != 0) {
    throw SpecError("resources.sequence_parallel is " + std::to_string(size_) +
                    ", which does not divide the number of ranks, " + std::to_string(ranks.world_size()));
  }
}

SequenceRanks::Pending SequenceRanks::StartExchange(const Communicator::Exchange& exchange) {
  const int64_t first = group() * size_;
  return ranks_.StartExchange({exchange.sent, first + exchange.to, exchange.received, first + exchange.from});
}

void SequenceRanks::Finish(Pending& pending) {
  if (!pending) return;
  const Pending finished = std::move(pending);
  finished->Wait();
}

bool SequenceRanks::AnyOf(bool mine) {
  const at::Tensor sent = at::full({1}, mine ? 1 : 0, at::kByte);
  const at::Tensor received = at::zeros({size_}, at::kByte);
  for (int64_t hop = 1; hop < size_; ++hop) {
    Pending pending =
        StartExchange({sent, (rank() + hop) % size_, received.narrow(0, hop, 1), (rank() + size_ - hop) % size_});
    Finish(pending);
  }
  return mine || received.any().item<bool>();
}

std::vector<SequenceShare> SharesOf(int64_t tokens, int64_t ranks) {
  std::vector<SequenceShare> shares;
  int64_t first = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const int64_t size = tokens / ranks + (rank < tokens % ranks ? 1 : 0);
    shares.push_back({first, size});
    first += size;
  }
  return shares;
}

}  // namespace longspan::trainer
