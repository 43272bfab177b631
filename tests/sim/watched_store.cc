#include "tests/sim/watched_store.h"

#include <limits>

namespace longspan::sim {
namespace {

absl::Status NobodyAsks() { return absl::UnimplementedError("the simulation has no streams and no backups"); }

}  // namespace

absl::StatusOr<core::StoredState> WatchedStore::Load() {
  absl::StatusOr<core::StoredState> stored = store_->Load();
  if (stored.ok()) invariants_->OnLoaded(*stored);
  loading_ = true;
  return stored;
}

absl::Status WatchedStore::Commit(const core::Transaction& transaction) {
  invariants_->CheckTransaction(transaction);
  if (!loading_) return CommitGroup(transaction);
  absl::Status committed = store_->Commit(transaction);
  if (committed.ok()) invariants_->OnCommitted(transaction);
  return committed;
}

absl::Status WatchedStore::CommitGroup(const core::Transaction& transaction) {
  for (const auto& [job_id, event] : transaction.events) {
    world_->Say("server: {} {} {}: {}", job_id, Name(event.state), event.reason, event.message);
  }
  if (invariants_->violation()) return absl::AbortedError("an invariant is violated");
  Random& random = world_->random;
  const Faults& faults = world_->faults;
  if (random.Chance(faults.server_crash_before_commit)) {
    die_("before a commit", random.Chance(faults.power_cut));
    return absl::AbortedError("the process is dead");
  }
  if (random.Chance(faults.commit_fails)) store_->FailNextCommit();
  if (random.Chance(faults.server_crash_in_commit)) store_->DieInNextCommit();
  absl::Status committed = store_->Commit(transaction);
  if (store_->died() || absl::IsInternal(committed)) invariants_->OnCommitUncertain(transaction);
  if (store_->died()) die_("in a commit", random.Chance(faults.power_cut));
  if (!committed.ok()) return committed;
  ++commits_;
  invariants_->OnCommitted(transaction);
  if (random.Chance(faults.server_crash_after_commit)) {
    die_("after a commit, before its answers", random.Chance(faults.power_cut));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<core::JobEvent>> WatchedStore::ReadEvents(const JobId&, int64_t, int64_t) const {
  return NobodyAsks();
}
absl::StatusOr<std::vector<core::Sample>> WatchedStore::ReadSamples(const JobId&, int64_t, int64_t) const {
  return NobodyAsks();
}

absl::StatusOr<int64_t> WatchedStore::FreeBytes() const { return full_ ? 0 : std::numeric_limits<int64_t>::max(); }

void WatchedStore::SetFull(bool full) {
  full_ = full;
  store_->SetFull(full);
}

absl::Status WatchedStore::Backup(const std::string&) { return NobodyAsks(); }

}  // namespace longspan::sim
