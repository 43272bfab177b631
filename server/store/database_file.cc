#include "server/store/database_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace longspan::store {

bool IsNetworkFileSystem(int64_t magic) {
  constexpr int64_t kNetwork[] = {
      0x6969,      // NFS
      0x517B,      // SMB
      0xFE534D42,  // SMB 2
      0xFF534D42,  // CIFS
      0x0BD00BD0,  // Lustre
      0x00C36400,  // Ceph
      0x47504653,  // GPFS
      0x19830326,  // BeeGFS
      0x5346414F,  // AFS
      0x6B414653,  // kAFS
      0x7461636F,  // OCFS2
      0x01161970,  // GFS2
      0x013111A8,  // IBRIX
      0x73757245,  // Coda
      0x564C,      // NCP
  };
  return std::find(std::begin(kNetwork), std::end(kNetwork), magic & 0xFFFFFFFF) != std::end(kNetwork);
}

absl::Status CheckIsLocal(const std::string& folder) {
  struct statfs info = {};
  if (statfs(folder.c_str(), &info) != 0) {
    return absl::PermissionDeniedError(fmt::format("cannot look at {}: {}", folder, std::strerror(errno)));
  }
  if (!IsNetworkFileSystem(info.f_type)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("{} lies on a network file system (type {:#x}), whose locks and fsync a database cannot rely on; put "
                  "the database on a "
                  "local disk",
                  folder, info.f_type & 0xFFFFFFFF));
}

absl::StatusOr<std::unique_ptr<FileLock>> FileLock::Acquire(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640);
  if (descriptor < 0) {
    return absl::PermissionDeniedError(fmt::format("cannot open {}: {}", path, std::strerror(errno)));
  }
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    char holder[32] = {};
    const ssize_t length = pread(descriptor, holder, sizeof(holder) - 1, 0);
    close(descriptor);
    return absl::FailedPreconditionError(
        fmt::format("another server (process {}) holds {}; only one may use a database",
                    length > 0 ? std::string(holder, static_cast<size_t>(length)) : "unknown", path));
  }
  const std::string self = std::to_string(getpid());
  // For the message above only: that it could not be written harms nobody.
  if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, self.data(), self.size(), 0) < 0) errno = 0;
  return std::unique_ptr<FileLock>(new FileLock(descriptor));
}

FileLock::~FileLock() { close(descriptor_); }

}  // namespace longspan::store
