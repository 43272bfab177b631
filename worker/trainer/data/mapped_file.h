// A file in memory, read-only, for as long as the object lives.
#pragma once

#include <cstdint>
#include <filesystem>

namespace longspan::trainer {

class MappedFile {
 public:
  // Throws UserError, naming the path. An empty file has data() == nullptr.
  static MappedFile Open(const std::filesystem::path& path);

  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const char* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  const char* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace longspan::trainer
