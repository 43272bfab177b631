// Shared storage: a folder every worker mounts today, an object store behind the same interface later.
//
// Keys are relative paths with '/' between their parts; an empty part, "." or ".." is refused with
// std::invalid_argument. Thread-safe. Errors are StorageError, whose text names the key, the operation and the cause.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace longspan::storage {

enum class StorageErrorKind { kNotFound, kNoSpace, kPermission, kCorrupt, kOther };

class StorageError : public std::runtime_error {
 public:
  StorageError(StorageErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  StorageErrorKind kind() const { return kind_; }

 private:
  StorageErrorKind kind_;
};

struct Entry {
  std::string key;
  bool is_folder = false;
  uint64_t size_bytes = 0;  // 0 for a folder
  int64_t modified_ns = 0;  // since the epoch
};

class Storage {
 public:
  virtual ~Storage() = default;

  // At most `length` bytes from `offset`; shorter only at the end of the object.
  virtual std::string ReadRange(std::string_view key, uint64_t offset, uint64_t length) const = 0;
  // The object appears whole or not at all, and survives a power cut once this returns.
  virtual void PutAtomically(std::string_view key, std::string_view bytes) = 0;
  // What lies directly below a folder, sorted by key; empty when there is no such folder.
  virtual std::vector<Entry> List(std::string_view folder) const = 0;
  virtual std::optional<Entry> Stat(std::string_view key) const = 0;
  // Removes an object or a whole folder; nothing happens when it is not there.
  virtual void Delete(std::string_view key) = 0;
};

// A directory. Creates `root` when it is missing.
std::unique_ptr<Storage> OpenDirectory(const std::filesystem::path& root);

// --- Files of a directory, for the trainer, whose files are written in place by libraries ---

// fsync of a file or of a directory; throws StorageError.
void SyncFile(const std::filesystem::path& path);
void SyncDirectory(const std::filesystem::path& path);

// Writes bytes beside `path` under a temporary name, fsyncs, renames, fsyncs the folder.
void WriteFileAtomically(const std::filesystem::path& path, std::string_view bytes);
// Deletes what processes that were killed within it left directly in `folder`. For a folder that nobody else writes to
// now. What cannot be deleted stays.
void RemoveTemporaries(const std::filesystem::path& folder);

// Publishes a folder written under a temporary name: fsyncs every file and the folder, renames it to `target`, fsyncs
// the parent. Returns false, and removes `temporary`, when `target` exists already (somebody else published it first).
bool PublishFolder(const std::filesystem::path& temporary, const std::filesystem::path& target);

// Lower-case hexadecimal SHA-256.
std::string Sha256Hex(std::string_view bytes);
std::string Sha256HexOfFile(const std::filesystem::path& path);

}  // namespace longspan::storage
