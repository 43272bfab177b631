#include "server/store/sqlite_store.h"

#include <fmt/format.h>
#include <sys/statvfs.h>

#include <filesystem>

#include "proto/support/mutex.h"
#include "server/store/database_file.h"
#include "server/store/migrations.h"
#include "server/store/rows.h"
#include "server/store/sqlite.h"

namespace longspan::store {
namespace {

// Stops at the first error.
template <typename Rows, typename Write>
absl::Status WriteEach(const Rows& rows, Write write) {
  for (const auto& row : rows) {
    if (absl::Status status = write(row); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Copy(Database& from, const std::string& target_path) {
  if (std::filesystem::exists(target_path)) {
    return absl::AlreadyExistsError(fmt::format("{} exists already; a backup overwrites nothing", target_path));
  }
  const absl::StatusOr<std::unique_ptr<Database>> target =
      Database::Open(target_path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
  if (!target.ok()) return target.status();
  sqlite3* to = (*target)->handle();
  sqlite3_backup* backup = sqlite3_backup_init(to, "main", from.handle(), "main");
  if (backup == nullptr) return ErrorOf(to);
  // In one go: it holds a reader's view meanwhile, which keeps no writer waiting in WAL mode.
  sqlite3_backup_step(backup, -1);
  if (sqlite3_backup_finish(backup) != SQLITE_OK) return ErrorOf(to);
  const absl::StatusOr<std::string> check = (*target)->QueryText("PRAGMA integrity_check(1)");
  if (!check.ok()) return check.status();
  return *check == "ok" ? absl::OkStatus() : absl::DataLossError(fmt::format("backup {}: {}", target_path, *check));
}

class SqliteStore : public Store {
 public:
  SqliteStore(std::unique_ptr<FileLock> lock, std::unique_ptr<Database> writer, std::unique_ptr<Database> reader)
      : lock_(std::move(lock)), writer_(std::move(writer)), reader_(std::move(reader)) {}

  absl::StatusOr<core::StoredState> Load() override {
    core::StoredState state;
    if (absl::Status status = LoadAll(*writer_, state); !status.ok()) return status;
    return state;
  }

  absl::Status Commit(const core::Transaction& transaction) override {
    if (transaction.empty()) return absl::OkStatus();
    absl::Status status = writer_->Execute("BEGIN IMMEDIATE");
    if (status.ok()) status = WriteAll(transaction);
    if (status.ok()) status = writer_->Execute("COMMIT");
    if (!status.ok()) (void)writer_->Execute("ROLLBACK");  // fails when SQLite has rolled back already
    return status;
  }

  absl::StatusOr<std::vector<core::JobEvent>> ReadEvents(const JobId& job_id, int64_t after,
                                                         int64_t limit) const override {
    MutexLock lock(reader_mutex_);
    return store::ReadEvents(*reader_, job_id, after, limit);
  }
  absl::StatusOr<std::vector<core::Sample>> ReadSamples(const JobId& job_id, int64_t after,
                                                        int64_t limit) const override {
    MutexLock lock(reader_mutex_);
    return store::ReadSamples(*reader_, job_id, after, limit);
  }

  absl::StatusOr<int64_t> FreeBytes() const override {
    struct statvfs disk;
    if (statvfs(writer_->path().c_str(), &disk) != 0) {
      return absl::UnavailableError(fmt::format("cannot ask how full the disk of {} is", writer_->path()));
    }
    return static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
  }

  absl::Status Backup(const std::string& target_path) override {
    MutexLock lock(reader_mutex_);
    return Copy(*reader_, target_path);
  }

 private:
  // Parents before children, for the foreign keys.
  absl::Status WriteAll(const core::Transaction& t) {
    Database& d = *writer_;
    absl::Status status = WriteEach(t.jobs, [&](const auto& row) { return WriteJob(d, row); });
    if (status.ok()) status = WriteEach(t.workers, [&](const auto& row) { return WriteWorker(d, row); });
    if (status.ok()) status = WriteEach(t.queues, [&](const auto& row) { return WriteQueue(d, row); });
    if (status.ok()) status = WriteEach(t.attempts, [&](const auto& row) { return WriteAttempt(d, row); });
    if (status.ok()) status = WriteEach(t.events, [&](const auto& of) { return WriteEvent(d, of.job_id, of.row); });
    if (status.ok()) status = WriteEach(t.samples, [&](const auto& of) { return WriteSample(d, of.job_id, of.row); });
    if (status.ok())
      status = WriteEach(t.checkpoints, [&](const auto& of) { return WriteCheckpoint(d, of.job_id, of.row); });
    if (status.ok())
      status = WriteEach(t.evaluations, [&](const auto& of) { return WriteEvaluation(d, of.job_id, of.row); });
    if (status.ok())
      status = WriteEach(t.artifacts, [&](const auto& of) { return WriteArtifact(d, of.job_id, of.row); });
    if (status.ok()) status = WriteEach(t.deleted_jobs, [&](const JobId& id) { return DeleteJob(d, id); });
    return status;
  }

  const std::unique_ptr<FileLock> lock_;
  const std::unique_ptr<Database> writer_;
  mutable Mutex reader_mutex_;
  const std::unique_ptr<Database> reader_ PT_GUARDED_BY(reader_mutex_);
};

absl::Status CheckIntegrity(Database& database) {
  const absl::StatusOr<std::string> check = database.QueryText("PRAGMA integrity_check(1)");
  if (!check.ok()) return check.status();
  if (*check == "ok") return absl::OkStatus();
  return absl::DataLossError(fmt::format("database {} is damaged ({}); restore a backup", database.path(), *check));
}

absl::Status Prepare(Database& database) {
  const absl::StatusOr<std::string> mode = database.QueryText("PRAGMA journal_mode = WAL");
  if (!mode.ok()) return mode.status();
  if (*mode != "wal")
    return absl::FailedPreconditionError(fmt::format("database {} cannot use a write-ahead log", database.path()));
  // The pages that a large cluster writes again and again stay in memory (64 MiB at most), and the log is moved into
  // the database every 16 MiB instead of 4: less to read and to write at the size of a thousand workers.
  absl::Status status = database.Execute(
      "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -65536; PRAGMA wal_autocheckpoint = "
      "4096");
  if (status.ok()) status = CheckIntegrity(database);
  if (status.ok()) status = Migrate(database, Migrations());
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const std::string& path) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  std::filesystem::create_directories(folder, error);
  if (error)
    return absl::PermissionDeniedError(fmt::format("cannot create folder {}: {}", folder.string(), error.message()));
  if (absl::Status local = CheckIsLocal(folder.string()); !local.ok()) return local;
  absl::StatusOr<std::unique_ptr<FileLock>> lock = FileLock::Acquire(path + ".lock");
  if (!lock.ok()) return lock.status();
  absl::StatusOr<std::unique_ptr<Database>> writer = Database::Open(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
  if (!writer.ok()) return writer.status();
  if (absl::Status prepared = Prepare(**writer); !prepared.ok()) return prepared;
  absl::StatusOr<std::unique_ptr<Database>> reader = Database::Open(path, SQLITE_OPEN_READWRITE);
  if (!reader.ok()) return reader.status();
  if (absl::Status status = (*reader)->Execute("PRAGMA query_only = ON"); !status.ok()) return status;
  return std::unique_ptr<Store>(
      std::make_unique<SqliteStore>(*std::move(lock), *std::move(writer), *std::move(reader)));
}

absl::Status CopyBackup(const std::string& backup_path, const std::string& path) {
  if (!std::filesystem::exists(backup_path))
    return absl::NotFoundError(fmt::format("there is no file {}", backup_path));
  const absl::StatusOr<std::unique_ptr<Database>> backup = Database::Open(backup_path, SQLITE_OPEN_READONLY);
  if (!backup.ok()) return backup.status();
  if (absl::Status checked = CheckIntegrity(**backup); !checked.ok()) return checked;
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  std::filesystem::create_directories(folder, error);
  if (error)
    return absl::PermissionDeniedError(fmt::format("cannot create folder {}: {}", folder.string(), error.message()));
  // Whole or not at all: a server never finds half a database under the name.
  const std::string partial = path + ".restoring";
  std::filesystem::remove(partial, error);
  if (std::filesystem::exists(path)) {
    return absl::AlreadyExistsError(
        fmt::format("{} exists; move it away first (with its -wal and -shm), a restore overwrites nothing", path));
  }
  if (absl::Status copied = Copy(**backup, partial); !copied.ok()) return copied;
  std::filesystem::rename(partial, path, error);
  if (error) return absl::PermissionDeniedError(fmt::format("cannot write {}: {}", path, error.message()));
  return absl::OkStatus();
}

absl::Status BackupSqliteDatabase(const std::string& path, const std::string& target_path) {
  const absl::StatusOr<std::unique_ptr<Database>> source = Database::Open(path, SQLITE_OPEN_READWRITE);
  if (!source.ok()) return source.status();
  return Copy(**source, target_path);
}

}  // namespace longspan::store
