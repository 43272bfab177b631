// Storage in a directory that every machine mounts.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "worker/storage/file_io.h"
#include "worker/storage/storage.h"

namespace longspan::storage {
namespace {

namespace fs = std::filesystem;

constexpr size_t kKeyBytesMax = 1024;

void CheckKey(std::string_view key) {
  if (key.size() > kKeyBytesMax)
    throw std::invalid_argument(
        fmt::format("a storage key has {} bytes; at most {} are allowed", key.size(), kKeyBytesMax));
  if (key.find('\0') != std::string_view::npos) throw std::invalid_argument("a storage key contains a zero byte");
  size_t begin = 0;
  for (;;) {
    const size_t end = std::min(key.find('/', begin), key.size());
    const std::string_view part = key.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") {
      throw std::invalid_argument(
          fmt::format("storage key '{}' has the part '{}'; keys are relative paths without '.' and '..'", key, part));
    }
    if (end == key.size()) return;
    begin = end + 1;
  }
}

int64_t ModifiedNs(const struct stat& status) {
  return status.st_mtim.tv_sec * int64_t{1'000'000'000} + status.st_mtim.tv_nsec;
}

Entry ToEntry(std::string key, const struct stat& status) {
  const bool is_folder = S_ISDIR(status.st_mode);
  return {std::move(key), is_folder, is_folder ? 0 : static_cast<uint64_t>(status.st_size), ModifiedNs(status)};
}

class DirectoryStorage : public Storage {
 public:
  explicit DirectoryStorage(const fs::path& root) {
    std::error_code error;
    fs::create_directories(root, error);
    if (error) ThrowErrno("create", root.native(), error.value());
    root_ = fs::canonical(root, error);
    if (error) ThrowErrno("open", root.native(), error.value());
  }

  std::string ReadRange(std::string_view key, uint64_t offset, uint64_t length) const override {
    const File file(PathOf(key), O_RDONLY, "read", key);
    struct stat status;
    if (::fstat(file.descriptor(), &status) != 0) ThrowErrno("read", key, errno);
    if (!S_ISREG(status.st_mode)) ThrowErrno("read", key, EISDIR);
    const auto size = static_cast<uint64_t>(status.st_size);
    if (offset >= size) return "";
    std::string bytes(std::min(length, size - offset), '\0');
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t got =
          ::pread(file.descriptor(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) ThrowErrno("read", key, errno);
      if (got == 0) break;  // the file became shorter meanwhile
      done += static_cast<size_t>(got);
    }
    bytes.resize(done);
    return bytes;
  }

  void PutAtomically(std::string_view key, std::string_view bytes) override {
    const fs::path path = PathOf(key);
    MakeFolders(path.parent_path(), key);
    const fs::path temporary = TemporaryNameBeside(path);
    WriteNewFile(temporary, bytes, key);
    if (::rename(temporary.c_str(), path.c_str()) != 0) {
      const int error_number = errno;
      ::unlink(temporary.c_str());
      ThrowErrno("publish", key, error_number);
    }
    SyncDirectory(path.parent_path());
  }

  std::vector<Entry> List(std::string_view folder) const override {
    const fs::path path = folder.empty() ? root_ : PathOf(folder);
    std::vector<Entry> entries;
    std::error_code error;
    for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename();
      struct stat status;
      if (IsTemporaryName(name) || ::stat(it->path().c_str(), &status) != 0) continue;  // deleted meanwhile
      entries.push_back(ToEntry(folder.empty() ? name : fmt::format("{}/{}", folder, name), status));
    }
    if (error && error.value() != ENOENT && error.value() != ENOTDIR) ThrowErrno("list", folder, error.value());
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.key < b.key; });
    return entries;
  }

  std::optional<Entry> Stat(std::string_view key) const override {
    struct stat status;
    if (::stat(PathOf(key).c_str(), &status) == 0) return ToEntry(std::string(key), status);
    if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
    ThrowErrno("look at", key, errno);
  }

  void Delete(std::string_view key) override {
    const fs::path path = PathOf(key);
    // First out of sight: a folder that is half deleted must not look like a whole one.
    const fs::path hidden = TemporaryNameBeside(path);
    if (::rename(path.c_str(), hidden.c_str()) != 0) {
      if (errno == ENOENT || errno == ENOTDIR) return;
      ThrowErrno("delete", key, errno);
    }
    std::error_code error;
    fs::remove_all(hidden, error);
    if (error) ThrowErrno("delete", key, error.value());
    SyncDirectory(path.parent_path());
  }

 private:
  // The path of a key. A symbolic link on the way that leads out of the root is refused.
  fs::path PathOf(std::string_view key) const {
    CheckKey(key);
    const fs::path path = root_ / fs::path(key);
    std::error_code error;
    const fs::path resolved = fs::weakly_canonical(path, error);
    if (error) ThrowErrno("open", key, error.value());
    const auto [root_end, ignored] = std::mismatch(root_.begin(), root_.end(), resolved.begin(), resolved.end());
    if (root_end != root_.end()) {
      throw StorageError(StorageErrorKind::kPermission,
                         fmt::format("cannot open {}: it leads out of {}", key, root_.native()));
    }
    return path;
  }

  // Like mkdir -p; each new folder's name is durable.
  void MakeFolders(const fs::path& folder, std::string_view key) {
    if (fs::is_directory(folder)) return;
    MakeFolders(folder.parent_path(), key);
    if (::mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) ThrowErrno("create the folder of", key, errno);
    SyncDirectory(folder.parent_path());
  }

  fs::path root_;
};

}  // namespace

std::unique_ptr<Storage> OpenDirectory(const fs::path& root) { return std::make_unique<DirectoryStorage>(root); }

}  // namespace longspan::storage
