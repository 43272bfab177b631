#include "worker/trainer/data/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "worker/trainer/errors.h"

namespace longspan::trainer {

MappedFile MappedFile::Open(const std::filesystem::path& path) {
  const auto fail = [&](int error) -> UserError {
    return UserError(fmt::format("cannot read {}: {}", path.string(), std::strerror(error)));
  };
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw fail(errno);
  struct stat about{};
  const bool known = fstat(fd, &about) == 0;
  MappedFile file;
  void* mapped = known && about.st_size > 0
                     ? mmap(nullptr, static_cast<size_t>(about.st_size), PROT_READ, MAP_SHARED, fd, 0)
                     : nullptr;
  const int error = errno;
  close(fd);
  if (!known || mapped == MAP_FAILED) throw fail(error);
  file.data_ = static_cast<const char*>(mapped);
  file.size_ = about.st_size;
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<char*>(data_), static_cast<size_t>(size_));
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace longspan::trainer
