// The daemon's folder on its own disk: a lock against a second daemon, and a folder per rank for its job file and its
// log. What a crashed daemon left there is deleted: its ranks died with it. Not thread-safe, save for the free
// functions.
#pragma once

#include <absl/status/statusor.h>

#include <memory>
#include <string>
#include <string_view>

#include "worker/daemon/rank_key.h"
#include "worker/daemon/unique_fd.h"

namespace longspan::worker {

class StateDir {
 public:
  // Makes the folder where it is missing. FailedPrecondition when another daemon holds it.
  static absl::StatusOr<std::unique_ptr<StateDir>> Open(const std::string& path);

  // A fresh folder for one rank. Refuses a job id that is no plain name.
  absl::StatusOr<std::string> MakeRankFolder(const RankKey& key);

  const std::string& path() const { return path_; }

 private:
  explicit StateDir(std::string path) : path_(std::move(path)) {}

  const std::string path_;
  UniqueFd lock_;
};

// Writes under another name and renames: a reader sees the whole file or none.
absl::Status WriteFileWhole(const std::string& path, std::string_view text);

// True when `path` is `root` or lies below it, after "..", "." and symbolic links are resolved.
bool LiesBelow(const std::string& path, const std::string& root);

}  // namespace longspan::worker
