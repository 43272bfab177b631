// longspan-server restore: a backup becomes the database of a server that is to start.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace longspan {

struct Restored {
  int64_t jobs = 0;
  int64_t unfinished = 0;  // of them; those that ran at the time of the backup start again from a checkpoint
};

// `data_dir` has no database yet. The backup may be of an earlier version of this program. Nothing is left behind under
// the database's name when it fails.
absl::StatusOr<Restored> RestoreBackup(const std::string& backup_path, const std::string& data_dir);

}  // namespace longspan
