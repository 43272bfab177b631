#include "server/restore/restore.h"

#include <filesystem>

#include "server/core/core.h"
#include "server/store/sqlite_store.h"

namespace longspan {

absl::StatusOr<Restored> RestoreBackup(const std::string& backup_path, const std::string& data_dir) {
  const std::filesystem::path folder(data_dir);
  const std::string path = (folder / "longspan.db").string();
  if (absl::Status copied = store::CopyBackup(backup_path, path); !copied.ok()) return copied;
  // Migrates, and gives up the attempts of that time in one commit.
  absl::StatusOr<std::unique_ptr<store::Store>> store = store::OpenSqliteStore(path);
  absl::Status status = store.status();
  Restored restored;
  if (status.ok()) {
    absl::StatusOr<core::StoredState> state = (*store)->Load();
    status = state.status();
    if (status.ok()) {
      restored.jobs = static_cast<int64_t>(state->jobs.size());
      for (const core::StoredState::JobRows& rows : state->jobs) {
        if (!core::IsTerminal(rows.job.state)) ++restored.unfinished;
      }
      core::Core core({});
      status = (*store)->Commit(core.Step(core::Restarted{*std::move(state), true}, absl::Now()).transaction);
    }
  }
  if (status.ok()) return restored;
  std::error_code ignored;
  for (const char* suffix : {"", "-wal", "-shm"}) std::filesystem::remove(path + suffix, ignored);
  return status;
}

}  // namespace longspan
