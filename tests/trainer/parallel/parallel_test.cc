#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <stdexcept>

#include "tests/trainer/parallel/gang.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/parallel/communicator.h"
#include "worker/trainer/parallel/gradient_reducer.h"
#include "worker/trainer/parallel/sequence_ranks.h"

namespace longspan::trainer {
namespace {

using testing::AsGang;

std::vector<at::Tensor> SomeGradients(int64_t rank) {
  std::vector<at::Tensor> gradients;
  for (int64_t size : {5, 1000, 3, 70, 2})
    gradients.push_back(at::arange(size, at::kFloat) + static_cast<double>(rank * 10 + size));
  return gradients;
}

TEST(GradientReducer, SumsOverRanksWhateverTheBucketsAndTheOrder) {
  for (int64_t bucket_bytes : {1, 300, 1 << 20}) {
    AsGang(2, [&](Communicator& ranks) {
      auto gradients = SomeGradients(ranks.rank());
      GradientReducer reducer(ranks, gradients, bucket_bytes);
      for (int step = 0; step < 2; ++step) {
        const auto start = SomeGradients(ranks.rank());
        for (size_t i = 0; i < gradients.size(); ++i) gradients[i].copy_(start[i]);
        // The ranks report in different orders; the collectives match all the same.
        if (ranks.rank() == 0) {
          for (size_t index : {3, 4, 0}) reducer.Ready(index);
        } else {
          for (size_t index : {4, 2, 1, 3, 0}) reducer.Ready(index);
        }
        ControlWord local;
        local.loss_sum = 1.5 + static_cast<double>(ranks.rank());
        local.scored_tokens = (int64_t{1} << 40) + ranks.rank();
        local.stop = ranks.rank() == 1;
        const ControlWord all = reducer.Finish(local);
        EXPECT_EQ(all.loss_sum, 4.0);
        EXPECT_EQ(all.scored_tokens, (int64_t{1} << 41) + 1);
        EXPECT_TRUE(all.stop);
        EXPECT_FALSE(all.checkpoint_now);
        const auto zero = SomeGradients(0), one = SomeGradients(1);
        for (size_t i = 0; i < gradients.size(); ++i) EXPECT_TRUE(gradients[i].equal(zero[i] + one[i])) << i;
      }
    });
  }
}

// What the sums' order beside other collectives hangs on where these share a stream with them.
TEST(GradientReducer, NothingStartsBeforeFinishWhereThatIsAskedFor) {
  for (const SumsStart start : {SumsStart::kWhenReady, SumsStart::kInFinish}) {
    AsGang(2, [&](Communicator& ranks) {
      auto gradients = SomeGradients(ranks.rank());
      GradientReducer reducer(ranks, gradients, 1, start);
      for (size_t index = gradients.size(); index-- > 0;) reducer.Ready(index);
      EXPECT_EQ(ranks.allreduce_bytes() > 0, start == SumsStart::kWhenReady);
      reducer.Finish({});
      const auto zero = SomeGradients(0), one = SomeGradients(1);
      for (size_t i = 0; i < gradients.size(); ++i) EXPECT_TRUE(gradients[i].equal(zero[i] + one[i])) << i;
    });
  }
}

TEST(GradientReducer, ANonFiniteLossOfOneRankReachesAll) {
  AsGang(3, [&](Communicator& ranks) {
    ControlWord local;
    local.loss_sum = ranks.rank() == 2 ? NAN : 1.0;
    EXPECT_TRUE(std::isnan(ReduceControlWord(ranks, local).loss_sum));
  });
}

TEST(GradientReducer, OneRankTakesTheSameCodeWithoutANetwork) {
  auto ranks = Communicator::OpenStore({});
  ranks->Join();
  auto gradients = SomeGradients(0);
  GradientReducer reducer(*ranks, gradients, 300);
  reducer.Ready(4);
  ControlWord local;
  local.loss_sum = 2;
  local.scored_tokens = 7;
  const ControlWord all = reducer.Finish(local);
  EXPECT_EQ(all.loss_sum, 2);
  EXPECT_EQ(all.scored_tokens, 7);
  for (size_t i = 0; i < gradients.size(); ++i) EXPECT_TRUE(gradients[i].equal(SomeGradients(0)[i]));
}

TEST(Communicator, PublishedWordsReachTheOthersBeforeTheyJoin) {
  AsGang(2, [&](Communicator& ranks) {
    if (ranks.rank() == 0) ranks.Publish("resume", "step-00000004.attempt-1");
    if (ranks.rank() == 1) {
      EXPECT_EQ(ranks.Get("resume", {}), "step-00000004.attempt-1");
    }
  });
}

TEST(Communicator, AllReducesThatOverlapAreTimedOnce) {
  AsGang(2, [&](Communicator& ranks) {
    EXPECT_EQ(ranks.use(Collective::kAllReduce).busy.count(), 0);
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::unique_ptr<Communicator::Pending>> pending;
    for (int i = 0; i < 10; ++i) pending.push_back(ranks.StartAllReduce(at::zeros({10000})));
    for (const auto& one : pending) one->Wait();
    const CollectiveUse use = ranks.use(Collective::kAllReduce);
    EXPECT_GT(use.busy.count(), 0);
    EXPECT_GT(use.waited.count(), 0);
    EXPECT_LE(use.busy, std::chrono::steady_clock::now() - begin);
    EXPECT_LE(use.waited, std::chrono::steady_clock::now() - begin);
    EXPECT_EQ(ranks.allreduce_bytes(), 400000);
  });
}

TEST(Communicator, EachKindOfCollectiveIsMetered) {
  AsGang(2, [&](Communicator& ranks) {
    const int64_t other = 1 - ranks.rank();
    const at::Tensor part = at::full({100}, ranks.rank(), at::kFloat), whole = at::empty({200});
    ranks.StartAllGather(part, whole)->Wait();
    const at::Tensor received = at::empty({50});
    ranks.StartExchange({part.narrow(0, 0, 50), other, received, other})->Wait();
    EXPECT_EQ(ranks.use(Collective::kAllReduce).bytes, 0);
    EXPECT_EQ(ranks.use(Collective::kAllReduce).busy.count(), 0);
    EXPECT_EQ(ranks.use(Collective::kAllGather).bytes, 400);
    EXPECT_EQ(ranks.use(Collective::kExchange).bytes, 200);
    for (const Collective kind : {Collective::kAllGather, Collective::kExchange}) {
      EXPECT_GT(ranks.use(kind).busy.count(), 0) << NameOf(kind);
      EXPECT_GE(ranks.use(kind).busy, ranks.use(kind).waited) << NameOf(kind);
    }
    EXPECT_TRUE(received.eq(static_cast<double>(other)).all().item<bool>());
  });
}

TEST(Communicator, WhatIsStagedThroughTheHostIsTheSame) {
  for (const int64_t world_size : {1, 2, 3}) {
    AsGang(
        world_size,
        [&](Communicator& ranks) {
          const int64_t rank = ranks.rank();
          const at::Tensor sum = at::full({7}, 1 + rank, at::kFloat);
          const auto pending = ranks.StartAllReduce(sum);
          pending->Wait();
          EXPECT_TRUE(sum.eq(static_cast<double>(world_size * (world_size + 1) / 2)).all().item<bool>());
          // The parts may be of a larger tensor.
          const at::Tensor part = at::full({2, 5}, rank, at::kBFloat16),
                           whole = at::full({world_size * 5}, -1, at::kBFloat16);
          ranks.StartAllGather(part[1], whole)->Wait();
          EXPECT_TRUE(whole.view({world_size, 5}).select(1, 0).equal(at::arange(world_size).to(at::kBFloat16)));
          if (world_size == 1) return;
          // Along a line, both ends with one message, and starts before the waits.
          Communicator::Exchange exchange;
          if (rank + 1 < world_size) exchange.sent = at::full({3}, 10 + rank, at::kFloat), exchange.to = rank + 1;
          if (rank > 0) exchange.received = at::zeros({3}), exchange.from = rank - 1;
          const auto first = ranks.StartExchange(exchange);
          first->Wait();
          if (rank > 0) {
            EXPECT_TRUE(exchange.received.eq(static_cast<double>(9 + rank)).all().item<bool>());
          }
          EXPECT_EQ(ranks.exchanged_bytes(), rank + 1 < world_size ? 12 : 0);
        },
        testing::Through::kHostStaging);
  }
}

TEST(Communicator, ADeadPeerIsAnInfrastructureErrorWithinSeconds) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(AsGang(2,
                      [&](Communicator& ranks) {
                        if (ranks.rank() == 1) throw std::runtime_error("this rank dies");
                        ranks.AllReduce(at::zeros({1000}));
                      }),
               InfrastructureError);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(Communicator, AnAllGatherPutsEveryRanksPartInPlaceBesideAllReduces) {
  for (const int64_t world_size : {1, 2, 3}) {
    AsGang(world_size, [&](Communicator& ranks) {
      constexpr int64_t kPart = 100'000;
      const auto part_of = [&](int64_t rank, int64_t round) {
        return (at::arange(kPart, at::kFloat) + static_cast<double>(1000 * rank + round)).to(at::kBFloat16);
      };
      at::Tensor outs[] = {at::zeros({world_size * kPart}, at::kBFloat16),
                           at::zeros({world_size * kPart}, at::kBFloat16)};
      for (int64_t round = 0; round < 3; ++round) {
        const at::Tensor local = part_of(ranks.rank(), round);
        const at::Tensor sum = at::ones({1000});
        auto first = ranks.StartAllGather(local, outs[0]);
        // The ranks may start an all-reduce between two all-gathers or behind them.
        if (ranks.rank() == 0) ranks.AllReduce(sum);
        auto second = ranks.StartAllGather(local, outs[1]);
        if (ranks.rank() != 0) ranks.AllReduce(sum);
        second->Wait();
        first->Wait();
        EXPECT_TRUE(sum.eq(static_cast<double>(world_size)).all().item<bool>());
        for (const at::Tensor& out : outs) {
          for (int64_t rank = 0; rank < world_size; ++rank) {
            EXPECT_TRUE(out.narrow(0, rank * kPart, kPart).equal(part_of(rank, round))) << "rank " << rank;
          }
        }
      }
      EXPECT_EQ(ranks.allgather_bytes(), 3 * 2 * (world_size - 1) * kPart * 2);
    });
  }
}

TEST(Communicator, APeerThatDiesBeforeAnAllGatherIsAnInfrastructureErrorWithinSeconds) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(AsGang(3,
                      [&](Communicator& ranks) {
                        if (ranks.rank() == 1) throw std::runtime_error("this rank dies");
                        const at::Tensor out = at::zeros({3000});
                        ranks.StartAllGather(at::zeros({1000}), out)->Wait();
                      }),
               InfrastructureError);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(Communicator, ExchangesGoToTheRankThatTheyNameInTheOrderOfTheirStarts) {
  AsGang(3, [&](Communicator& ranks) {
    const int64_t next = (ranks.rank() + 1) % 3, before = (ranks.rank() + 2) % 3;
    const at::Tensor sum = at::ones({1 << 18});
    const auto reduced = ranks.StartAllReduce(sum);  // beside the exchanges
    std::vector<at::Tensor> sent, received;
    std::vector<std::unique_ptr<Communicator::Pending>> pending;
    for (int64_t size : {1, 70000, 3}) {
      sent.push_back(at::full({size}, 10.0 * static_cast<double>(ranks.rank()) + static_cast<double>(sent.size())));
      received.push_back(at::zeros({size}));
      pending.push_back(ranks.StartExchange({sent.back(), next, received.back(), before}));
    }
    for (size_t i = 0; i < pending.size(); ++i) {
      pending[i]->Wait();
      EXPECT_TRUE(received[i].eq(10.0 * static_cast<double>(before) + static_cast<double>(i)).all().item<bool>());
    }
    reduced->Wait();
    EXPECT_TRUE(sum.eq(3).all().item<bool>());
    EXPECT_EQ(ranks.exchanged_bytes(), 70004 * 4);
  });
}

TEST(Communicator, AnExchangeInOneDirectionNeedsNothingBack) {
  AsGang(2, [&](Communicator& ranks) {
    const at::Tensor word = at::full({5}, static_cast<double>(1 - ranks.rank()));
    if (ranks.rank() == 0) ranks.StartExchange({word, 1, {}, 0})->Wait();
    if (ranks.rank() == 1) ranks.StartExchange({{}, 0, word, 0})->Wait();
    EXPECT_TRUE(word.eq(1).all().item<bool>());
    EXPECT_EQ(ranks.exchanged_bytes(), ranks.rank() == 0 ? 20 : 0);
  });
}

TEST(Communicator, APeerThatDiesInAnExchangeIsAnInfrastructureErrorWithinSeconds) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(AsGang(2,
                      [&](Communicator& ranks) {
                        if (ranks.rank() == 1) throw std::runtime_error("this rank dies");
                        ranks.StartExchange({{}, 0, at::zeros({1000}), 1})->Wait();
                      }),
               InfrastructureError);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(SequenceRanks, AreConsecutiveInTheirDataGroup) {
  AsGang(4, [&](Communicator& ranks) {
    SequenceRanks sequence(ranks, 2);
    EXPECT_EQ(sequence.group(), ranks.rank() / 2);
    EXPECT_EQ(sequence.rank(), ranks.rank() % 2);
    EXPECT_EQ(sequence.groups(), 2);
    EXPECT_EQ(sequence.AnyOf(ranks.rank() == 2), sequence.group() == 1);
    EXPECT_FALSE(sequence.AnyOf(false));
    EXPECT_THROW(SequenceRanks(ranks, 3), SpecError);
  });
}

TEST(SequenceRanks, SharesCoverASequenceInOrder) {
  for (const int64_t tokens : {1, 7, 8, 9, 64}) {
    for (const int64_t ranks : {1, 2, 3, 8}) {
      int64_t next = 0;
      for (const SequenceShare& share : SharesOf(tokens, ranks)) {
        EXPECT_EQ(share.first, next);
        EXPECT_TRUE(share.tokens == tokens / ranks || share.tokens == tokens / ranks + 1);
        next += share.tokens;
      }
      EXPECT_EQ(next, tokens);
    }
  }
}

TEST(Communicator, AWrongStoreAddressIsABadSpec) {
  for (const char* store : {"", "localhost", "localhost:", ":1", "localhost:http", "localhost:99999"}) {
    CommunicatorOptions options;
    options.world_size = 2;
    options.store = store;
    EXPECT_THROW(Communicator::OpenStore(options), SpecError) << store;
  }
}

TEST(Communicator, APortInUseIsAnInfrastructureError) {
  CommunicatorOptions options;
  options.world_size = 2;
  options.store = "127.0.0.1:0";
  auto first = Communicator::OpenStore(options);
  options.store = first->store_address();
  EXPECT_THROW(Communicator::OpenStore(options), InfrastructureError);
}

}  // namespace
}  // namespace longspan::trainer
