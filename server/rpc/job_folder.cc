#include "server/rpc/job_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

namespace longspan::rpc {
namespace {

constexpr int kDepthMax = 32;

absl::Status PathError(const std::string& path, int error) {
  const std::string name = path.empty() ? "the job's folder" : fmt::format("'{}'", path);
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(fmt::format("the job has no {}", name));
    case ELOOP:
      return absl::FailedPreconditionError(fmt::format("{} is a symbolic link; links are not followed", name));
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(fmt::format("the server may not read {}", name));
    default:
      return absl::UnavailableError(fmt::format("cannot open {}: {}", name, std::strerror(error)));
  }
}

absl::StatusOr<std::vector<std::string>> PartsOf(const std::string& path) {
  std::vector<std::string> parts;
  if (path.empty()) return parts;
  size_t begin = 0;
  while (begin <= path.size()) {
    const size_t end = std::min(path.find('/', begin), path.size());
    std::string part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == ".." || part.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError(
          fmt::format("path '{}' must be relative to the job's folder, without '.', '..' or empty parts", path));
    }
    parts.push_back(std::move(part));
    begin = end + 1;
  }
  return parts;
}

// A path component that is a link gives ELOOP with O_NOFOLLOW, but ENOTDIR together with O_DIRECTORY.
FileDescriptor OpenFolderBelow(const FileDescriptor& parent, const char* name) {
  return FileDescriptor(openat(parent.get(), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

absl::StatusOr<FileDescriptor> OpenFolder(const std::filesystem::path& root, const std::vector<std::string>& parts,
                                          const std::string& shown) {
  FileDescriptor folder(open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid()) return PathError("", errno);
  for (const std::string& part : parts) {
    FileDescriptor next = OpenFolderBelow(folder, part.c_str());
    if (!next.valid()) return PathError(shown, errno);
    folder = std::move(next);
  }
  return folder;
}

struct DirectoryCloser {
  void operator()(DIR* directory) const { closedir(directory); }
};

FolderEntry EntryOf(const std::string& path, const struct stat& status) {
  FolderEntry entry;
  entry.path = path;
  entry.is_folder = S_ISDIR(status.st_mode);
  entry.size_bytes = entry.is_folder ? 0 : status.st_size;
  entry.modified_ns = int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
  return entry;
}

absl::Status ListInto(FileDescriptor folder, const std::string& prefix, bool recursive, int depth,
                      std::vector<FolderEntry>* entries) {
  if (depth > kDepthMax) return absl::ResourceExhaustedError(fmt::format("'{}' is nested too deep", prefix));
  const std::unique_ptr<DIR, DirectoryCloser> directory(fdopendir(folder.get()));
  if (directory == nullptr) return PathError(prefix, errno);
  const int descriptor = folder.Release();  // closedir closes it
  while (const dirent* found = readdir(directory.get())) {
    const std::string name = found->d_name;
    if (name == "." || name == "..") continue;
    struct stat status{};
    if (fstatat(descriptor, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) continue;  // gone meanwhile
    if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) continue;
    if (entries->size() >= kFolderEntriesMax) {
      return absl::ResourceExhaustedError(
          fmt::format("the folder has more than {} files; list one of its folders", kFolderEntriesMax));
    }
    const std::string path = prefix.empty() ? name : prefix + "/" + name;
    entries->push_back(EntryOf(path, status));
    if (!recursive || !S_ISDIR(status.st_mode)) continue;
    FileDescriptor child(openat(descriptor, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!child.valid()) continue;
    if (absl::Status listed = ListInto(std::move(child), path, recursive, depth + 1, entries); !listed.ok())
      return listed;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<FolderEntry>> ListFolder(const std::filesystem::path& root, const std::string& folder,
                                                    bool recursive) {
  absl::StatusOr<std::vector<std::string>> parts = PartsOf(folder);
  if (!parts.ok()) return parts.status();
  std::vector<FolderEntry> entries;
  absl::StatusOr<FileDescriptor> opened = OpenFolder(root, *parts, folder);
  if (!opened.ok()) {
    if (parts->empty() && absl::IsNotFound(opened.status())) return entries;
    return opened.status();
  }
  if (absl::Status listed = ListInto(*std::move(opened), folder, recursive, 0, &entries); !listed.ok()) return listed;
  std::sort(entries.begin(), entries.end(), [](const FolderEntry& a, const FolderEntry& b) { return a.path < b.path; });
  return entries;
}

absl::StatusOr<OpenedFile> OpenFile(const std::filesystem::path& root, const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("path is empty; name a file of the job's folder");
  absl::StatusOr<std::vector<std::string>> parts = PartsOf(path);
  if (!parts.ok()) return parts.status();
  const std::string name = parts->back();
  parts->pop_back();
  absl::StatusOr<FileDescriptor> folder = OpenFolder(root, *parts, path);
  if (!folder.ok()) return folder.status();
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  OpenedFile opened;
  opened.file = FileDescriptor(openat(folder->get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  if (!opened.file.valid()) return PathError(path, errno);
  struct stat status{};
  if (fstat(opened.file.get(), &status) != 0) return PathError(path, errno);
  if (!S_ISREG(status.st_mode)) return absl::FailedPreconditionError(fmt::format("'{}' is not a regular file", path));
  opened.size_bytes = status.st_size;
  return opened;
}

}  // namespace longspan::rpc
