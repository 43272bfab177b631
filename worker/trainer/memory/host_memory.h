// Host memory for what leaves the device between the forward and the backward pass: one mapping of exactly the size
// asked for (LibTorch's pinned allocator rounds up to powers of two), pinned where a GPU copies from and to it. Without
// a GPU it is a second pool beside the device's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longspan::trainer {

class HostBlock {
 public:
  explicit HostBlock(bool pinned = false) : pinned_(pinned) {}
  ~HostBlock() { Release(); }
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;

  // At least so many bytes; what was there is lost when it grows. ResourceError when the machine has no more.
  void Reserve(int64_t bytes);
  void Release();
  int64_t bytes() const { return bytes_; }
  std::byte* data() const { return data_; }

 private:
  bool pinned_;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace longspan::trainer
