#include "worker/storage/file_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <random>
#include <system_error>
#include <vector>

#include "worker/storage/sha256.h"

namespace longspan::storage {
namespace {

constexpr char kTemporaryMark[] = ".tmp-";
constexpr unsigned kRenameNoReplace = 1;  // RENAME_NOREPLACE of linux/fs.h

StorageErrorKind KindOf(int error_number) {
  switch (error_number) {
    case ENOENT:
      return StorageErrorKind::kNotFound;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return StorageErrorKind::kNoSpace;
    case EACCES:
    case EPERM:
    case EROFS:
      return StorageErrorKind::kPermission;
    default:
      return StorageErrorKind::kOther;
  }
}

void WriteAll(int descriptor, std::string_view bytes, std::string_view what) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) ThrowErrno("write", what, errno);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}

void Rename(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) ThrowErrno("publish", to.native(), errno);
}

// False when `to` exists.
bool RenameToNewName(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), kRenameNoReplace) == 0) return true;
  if (errno == EEXIST) return false;
  if (errno != EINVAL && errno != ENOSYS) ThrowErrno("publish", to.native(), errno);
  // A file system without this call (NFS): a plain rename refuses a folder that has something in it.
  if (std::filesystem::exists(std::filesystem::symlink_status(to))) return false;
  if (::rename(from.c_str(), to.c_str()) == 0) return true;
  if (errno == EEXIST || errno == ENOTEMPTY) return false;
  ThrowErrno("publish", to.native(), errno);
}

void SyncTree(const std::filesystem::path& folder) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.is_symlink()) continue;
    if (entry.is_directory()) {
      SyncTree(entry.path());
    } else {
      SyncFile(entry.path());
    }
  }
  if (error) ThrowErrno("list", folder.native(), error.value());
  SyncDirectory(folder);
}

}  // namespace

void ThrowErrno(std::string_view operation, std::string_view what, int error_number) {
  throw StorageError(KindOf(error_number),
                     fmt::format("cannot {} {}: {}", operation, what, std::generic_category().message(error_number)));
}

File::File(const std::filesystem::path& path, int flags, std::string_view operation, std::string_view what)
    : descriptor_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
  if (descriptor_ < 0) ThrowErrno(operation, what, errno);
}
File::~File() { ::close(descriptor_); }

void WriteNewFile(const std::filesystem::path& path, std::string_view bytes, std::string_view what) {
  const File file(path, O_WRONLY | O_CREAT | O_EXCL, "create", what);
  try {
    WriteAll(file.descriptor(), bytes, what);
    if (::fsync(file.descriptor()) != 0) ThrowErrno("sync", what, errno);
  } catch (const StorageError&) {
    ::unlink(path.c_str());
    throw;
  }
}

std::filesystem::path TemporaryNameBeside(const std::filesystem::path& path) {
  // Two machines may share a folder, so the process id alone is not unique.
  static const unsigned random = std::random_device{}();
  static std::atomic<uint64_t> counter = 0;
  return path.parent_path() /
         fmt::format(".{}{}{:08x}-{}-{}", path.filename().native(), kTemporaryMark, random, ::getpid(), counter++);
}

bool IsTemporaryName(std::string_view name) {
  return name.starts_with('.') && name.find(kTemporaryMark) != std::string_view::npos;
}

void SyncFile(const std::filesystem::path& path) {
  const File file(path, O_RDONLY, "sync", path.native());
  if (::fsync(file.descriptor()) != 0) ThrowErrno("sync", path.native(), errno);
}

void SyncDirectory(const std::filesystem::path& path) {
  const File folder(path, O_RDONLY | O_DIRECTORY, "sync", path.native());
  // Some network file systems cannot sync a folder and say EINVAL; their renames are durable by protocol.
  if (::fsync(folder.descriptor()) != 0 && errno != EINVAL) ThrowErrno("sync", path.native(), errno);
}

void WriteFileAtomically(const std::filesystem::path& path, std::string_view bytes) {
  const std::filesystem::path temporary = TemporaryNameBeside(path);
  WriteNewFile(temporary, bytes, path.native());
  try {
    Rename(temporary, path);
  } catch (const StorageError&) {
    ::unlink(temporary.c_str());
    throw;
  }
  SyncDirectory(path.has_parent_path() ? path.parent_path() : ".");
}

void RemoveTemporaries(const std::filesystem::path& folder) {
  std::error_code ignored;  // no folder: nothing to delete
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (entry.is_regular_file(ignored) && IsTemporaryName(entry.path().filename().native()))
      found.push_back(entry.path());
  }
  for (const std::filesystem::path& path : found) std::filesystem::remove(path, ignored);
}

bool PublishFolder(const std::filesystem::path& temporary, const std::filesystem::path& target) {
  SyncTree(temporary);
  if (!RenameToNewName(temporary, target)) {
    std::error_code ignored;
    std::filesystem::remove_all(temporary, ignored);
    return false;
  }
  SyncDirectory(target.has_parent_path() ? target.parent_path() : ".");
  return true;
}

Sha256::Sha256() : context_(EVP_MD_CTX_new()) { EVP_DigestInit_ex(context_, EVP_sha256(), nullptr); }
Sha256::~Sha256() { EVP_MD_CTX_free(context_); }
void Sha256::Add(std::string_view bytes) { EVP_DigestUpdate(context_, bytes.data(), bytes.size()); }
std::string Sha256::Hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  EVP_DigestFinal_ex(context_, digest, &length);
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

std::string Sha256Hex(std::string_view bytes) {
  Sha256 hash;
  hash.Add(bytes);
  return hash.Hex();
}

std::string Sha256HexOfFile(const std::filesystem::path& path) {
  const File file(path, O_RDONLY, "read", path.native());
  Sha256 hash;
  std::string buffer(1 << 20, '\0');
  for (;;) {
    const ssize_t got = ::read(file.descriptor(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) ThrowErrno("read", path.native(), errno);
    if (got == 0) return hash.Hex();
    hash.Add(std::string_view(buffer).substr(0, static_cast<size_t>(got)));
  }
}

}  // namespace longspan::storage
