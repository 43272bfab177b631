// System calls on files with errors that say what, where and why. Private to this folder.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "worker/storage/storage.h"

namespace longspan::storage {

// StorageError "cannot <operation> <what>: <strerror>", its kind from the error number.
[[noreturn]] void ThrowErrno(std::string_view operation, std::string_view what, int error_number);

// An open file descriptor; closes itself.
class File {
 public:
  File(const std::filesystem::path& path, int flags, std::string_view operation, std::string_view what);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
};

// Writes all bytes to `path`, which must not exist, and fsyncs it. `what` names the file in errors. On an error the
// file is gone.
void WriteNewFile(const std::filesystem::path& path, std::string_view bytes, std::string_view what);

// A name beside `path` that no other process or thread uses, hidden from listings.
std::filesystem::path TemporaryNameBeside(const std::filesystem::path& path);
bool IsTemporaryName(std::string_view name);

}  // namespace longspan::storage
