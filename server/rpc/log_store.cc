#include "server/rpc/log_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <functional>

#include "server/rpc/file_descriptor.h"

namespace longspan::rpc {
namespace {

absl::Status FileError(const std::filesystem::path& path, const char* operation, int error) {
  const std::string message = fmt::format("cannot {} {}: {}", operation, path.string(), std::strerror(error));
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

absl::Status WriteAll(const FileDescriptor& file, const std::filesystem::path& path, std::string_view data,
                      int64_t offset) {
  while (!data.empty()) {
    const ssize_t written = pwrite(file.get(), data.data(), data.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(path, "write", errno);
    data.remove_prefix(static_cast<size_t>(written));
    offset += written;
  }
  return absl::OkStatus();
}

}  // namespace

LogStore::LogStore(std::filesystem::path storage, LogLimits limits) : storage_(std::move(storage)), limits_(limits) {}

std::filesystem::path LogStore::PathOf(const RankLog& log) const {
  return storage_ / "jobs" / log.job_id / "logs" / fmt::format("attempt-{}", log.attempt) /
         fmt::format("rank-{}.log", log.rank);
}

absl::StatusOr<int64_t> LogStore::Append(const RankLog& log, int64_t offset, std::string_view data) {
  const std::filesystem::path path = PathOf(log);
  const std::lock_guard lock(locks_[std::hash<std::string>{}(path.string()) % locks_.size()]);
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error) return FileError(path.parent_path(), "create", error.value());
  const FileDescriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!file.valid()) return FileError(path, "open", errno);
  struct stat status{};
  if (fstat(file.get(), &status) != 0) return FileError(path, "stat", errno);

  const int64_t stored = status.st_size;
  const int64_t end = offset + static_cast<int64_t>(data.size());
  if (stored >= limits_.bytes_max) return std::max(stored, end);  // full: the marker is there, the rest is dropped
  if (offset > stored) return stored;
  if (end <= stored) return stored;
  data.remove_prefix(static_cast<size_t>(stored - offset));
  const bool fills = stored + static_cast<int64_t>(data.size()) >= limits_.bytes_max;
  if (fills) data = data.substr(0, static_cast<size_t>(limits_.bytes_max - stored));
  if (absl::Status written = WriteAll(file, path, data, stored); !written.ok()) return written;
  if (!fills) return end;
  const std::string marker =
      fmt::format("\n[longspan: this log ends here, at its limit of {} bytes]\n", limits_.bytes_max);
  if (absl::Status written = WriteAll(file, path, marker, limits_.bytes_max); !written.ok()) return written;
  return end;
}

absl::StatusOr<std::string> LogStore::Read(const RankLog& log, int64_t offset, int64_t length) const {
  const std::filesystem::path path = PathOf(log);
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file.valid()) {
    if (errno == ENOENT) return std::string();
    return FileError(path, "open", errno);
  }
  std::string data(static_cast<size_t>(length), '\0');
  const ssize_t got = pread(file.get(), data.data(), data.size(), offset);
  if (got < 0) return FileError(path, "read", errno);
  data.resize(static_cast<size_t>(got));
  return data;
}

}  // namespace longspan::rpc
