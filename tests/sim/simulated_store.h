// The server's store, with faults: the one in memory for most seeds, the real SQLite store on a faulty disk for some.
//
// Open is a start of the server's process, Kill is its end. In between Load and Commit are those of store::Store.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/events.h"
#include "tests/sim/random.h"

namespace longspan::sim {

class SimulatedStore {
 public:
  virtual ~SimulatedStore() = default;

  virtual absl::Status Open() = 0;
  virtual absl::StatusOr<core::StoredState> Load() = 0;
  virtual absl::Status Commit(const core::Transaction& transaction) = 0;
  // Also the power, or only the process.
  virtual void Kill(bool power_cut) = 0;

  // Commits that need room fail.
  virtual void SetFull(bool full) = 0;
  // An I/O error of the next commit: it did not happen.
  virtual void FailNextCommit() = 0;
  // The process dies within the next commit: its Commit fails, and died() says why. False when the store has no middle.
  virtual bool DieInNextCommit() = 0;
  virtual bool died() const = 0;

  virtual absl::StatusOr<std::vector<core::JobEvent>> Events(const JobId& job_id) = 0;
  // Anything that is wrong with the files; empty: nothing.
  virtual std::string Damage() = 0;
};

std::unique_ptr<SimulatedStore> MakeMemoryStore();
std::unique_ptr<SimulatedStore> MakeSqliteStore(Random* random);

}  // namespace longspan::sim
