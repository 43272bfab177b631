// Store on SQLite: write-ahead log, synchronous=FULL, foreign keys, numbered migrations, integrity check on opening.
//
// Opening creates the file and its folder, refuses a network file system (its locks and its fsync cannot be relied on),
// and holds an exclusive lock on `<path>.lock` until the store is destroyed: a second server gets FAILED_PRECONDITION
// that names the holder's process. A database that a newer version of this program wrote is refused.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/store/store.h"

namespace longspan::store {

absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const std::string& path);

// Copies the database at `path`, which a server may be using, to `target_path`, which must not exist.
absl::Status BackupSqliteDatabase(const std::string& path, const std::string& target_path);

// Puts a copy of a backup at `path`, where no database may be, whole or not at all. DATA_LOSS for a damaged backup.
absl::Status CopyBackup(const std::string& backup_path, const std::string& path);

}  // namespace longspan::store
