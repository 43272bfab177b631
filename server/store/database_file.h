// What must hold of the file before it is opened: a local disk, and nobody else's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace longspan::store {

// By the f_type of statfs.
bool IsNetworkFileSystem(int64_t magic);

// FAILED_PRECONDITION when `folder`, which exists, lies on a network file system.
absl::Status CheckIsLocal(const std::string& folder);

// An exclusive lock on a file, held until destroyed or until the process ends in whatever way.
class FileLock {
 public:
  // Writes the process id into the file. FAILED_PRECONDITION, naming the holder's, when it is locked.
  static absl::StatusOr<std::unique_ptr<FileLock>> Acquire(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  explicit FileLock(int descriptor) : descriptor_(descriptor) {}
  const int descriptor_;
};

}  // namespace longspan::store
