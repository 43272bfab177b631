// Ranks as threads of one process.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <vector>

#include "worker/trainer/parallel/communicator.h"
#include "worker/trainer/parallel/host_staging.h"

namespace longspan::trainer::testing {

// Runs `body` as every rank of a gang, one thread each; rethrows what a rank threw.
enum class Through { kGloo, kHostStaging };

inline void AsGang(int64_t world_size, const std::function<void(Communicator&)>& body,
                   Through through = Through::kGloo) {
  std::promise<std::string> address;
  std::shared_future<std::string> found = address.get_future().share();
  std::vector<std::future<void>> ranks;
  for (int64_t rank = 0; rank < world_size; ++rank) {
    ranks.push_back(std::async(std::launch::async, [&, rank, found, through] {
      CommunicatorOptions options;
      options.rank = rank;
      options.world_size = world_size;
      options.store = rank == 0 ? "127.0.0.1:0" : found.get();
      options.connect_timeout = std::chrono::seconds(30);
      options.collective_timeout = std::chrono::seconds(30);
      auto communicator = Communicator::OpenStore(options);
      if (through == Through::kHostStaging) communicator = StagedThroughHost(std::move(communicator), Staged::kAll);
      if (rank == 0) address.set_value(communicator->store_address());
      communicator->Join();
      body(*communicator);
      // Rank 0 holds the store: it leaves last.
      communicator->AllReduce(at::zeros({1}));
    }));
  }
  for (auto& rank : ranks) rank.get();
}

}  // namespace longspan::trainer::testing
