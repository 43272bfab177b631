// Files of a job's folder for clients: listed and read without ever leaving the folder.
//
// Every part of a path is opened on its own, below its parent and without following symbolic links, so neither ".." nor
// a link that a trainer left can reach another place, not even while somebody changes the folder. Thread-safe; calls
// block on the file system.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/rpc/file_descriptor.h"

namespace longspan::rpc {

struct FolderEntry {
  std::string path;        // relative to the job's folder
  int64_t size_bytes = 0;  // 0 for a folder
  bool is_folder = false;
  int64_t modified_ns = 0;  // since the epoch
};

inline constexpr size_t kFolderEntriesMax = 10'000;

// What lies in `folder` below `root` ("": root itself), with everything below when `recursive`; sorted by path.
// Symbolic links and special files are left out. RESOURCE_EXHAUSTED when there are more than kFolderEntriesMax. A root
// that does not exist yet has no files.
absl::StatusOr<std::vector<FolderEntry>> ListFolder(const std::filesystem::path& root, const std::string& folder,
                                                    bool recursive);

struct OpenedFile {
  FileDescriptor file;
  int64_t size_bytes = 0;
};

// A regular file below `root`. INVALID_ARGUMENT for a path that is absolute, empty or has a part "." or "..",
// NOT_FOUND, FAILED_PRECONDITION for a folder, a link or a special file.
absl::StatusOr<OpenedFile> OpenFile(const std::filesystem::path& root, const std::string& path);

}  // namespace longspan::rpc
