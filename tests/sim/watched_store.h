// The store as the server's process sees it: the faults come by chance, the invariants look on.
//
// What a core writes while it is built (from Load to Loaded) goes through without a fault of its own: a full disk is
// the only one it meets.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "server/store/store.h"
#include "tests/sim/invariants.h"
#include "tests/sim/simulated_store.h"
#include "tests/sim/world.h"

namespace longspan::sim {

class WatchedStore final : public store::Store {
 public:
  // `die`: the process ends within this Commit, before anything that would come after it. `power_cut`: the power with
  // it.
  using Die = std::function<void(const char* when, bool power_cut)>;

  // `store` is the disk, which outlives processes.
  WatchedStore(World* world, Invariants* invariants, SimulatedStore* store, Die die)
      : world_(world), invariants_(invariants), store_(store), die_(std::move(die)) {}

  absl::StatusOr<core::StoredState> Load() override;
  void Loaded() { loading_ = false; }
  absl::Status Commit(const core::Transaction& transaction) override;
  absl::StatusOr<std::vector<core::JobEvent>> ReadEvents(const JobId& job_id, int64_t after,
                                                         int64_t limit) const override;
  absl::StatusOr<std::vector<core::Sample>> ReadSamples(const JobId& job_id, int64_t after,
                                                        int64_t limit) const override;
  absl::Status Backup(const std::string& target_path) override;
  absl::StatusOr<int64_t> FreeBytes() const override;

  void SetFull(bool full);
  bool full() const { return full_; }

  // Of groups, without those of starts.
  int64_t commits() const { return commits_; }

 private:
  absl::Status CommitGroup(const core::Transaction& transaction);

  World* const world_;
  Invariants* const invariants_;
  SimulatedStore* const store_;
  const Die die_;
  bool loading_ = false;
  bool full_ = false;
  int64_t commits_ = 0;
};

}  // namespace longspan::sim
