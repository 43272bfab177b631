// MemoryStore behind the store's interface, for tests of what commits. Streams' reads and backups are not there. Not
// thread-safe by itself.
#pragma once

#include "server/store/store.h"
#include "tests/server/fakes/memory_store.h"

namespace longspan::testing {

class StoreWithoutReads : public store::Store {
 public:
  absl::StatusOr<core::StoredState> Load() override { return memory_.Load(); }
  absl::Status Commit(const core::Transaction& transaction) override {
    memory_.Commit(transaction);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<core::JobEvent>> ReadEvents(const JobId&, int64_t, int64_t) const override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::vector<core::Sample>> ReadSamples(const JobId&, int64_t, int64_t) const override {
    return absl::UnimplementedError("");
  }
  absl::Status Backup(const std::string&) override { return absl::UnimplementedError(""); }

 private:
  MemoryStore memory_;
};

}  // namespace longspan::testing
