// The durable truth of the coordinator.
//
// Load once at the start, then Commit from one thread. The Read functions may be called from any thread while commits
// go on; they see whole transactions only. Once Commit has returned OK, a kill -9 or a power cut loses nothing of it.
//
// Errors are absl::Status with the path of the database in the text. INTERNAL from Commit means that a guard failed:
// the row in the store was not the one the core believed in. The server ends then.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/events.h"
#include "server/core/types.h"

namespace longspan::store {

class Store {
 public:
  virtual ~Store() = default;

  virtual absl::StatusOr<core::StoredState> Load() = 0;
  // All of it or nothing. An empty transaction costs nothing.
  virtual absl::Status Commit(const core::Transaction& transaction) = 0;

  // With a sequence above `after`, in order, at most `limit`. A job that does not exist has none.
  virtual absl::StatusOr<std::vector<core::JobEvent>> ReadEvents(const JobId& job_id, int64_t after,
                                                                 int64_t limit) const = 0;
  virtual absl::StatusOr<std::vector<core::Sample>> ReadSamples(const JobId& job_id, int64_t after,
                                                                int64_t limit) const = 0;

  // Of the disk that commits go to. A store without a limit has all there is.
  virtual absl::StatusOr<int64_t> FreeBytes() const { return std::numeric_limits<int64_t>::max(); }

  // A consistent copy while commits go on.
  virtual absl::Status Backup(const std::string& target_path) = 0;
};

}  // namespace longspan::store
