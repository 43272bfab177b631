// One block of device memory that only grows, and tensors that lie in it.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace longspan::trainer {

class ByteBlock {
 public:
  explicit ByteBlock(at::Device device = at::kCPU) : device_(device) {}

  // At least so many bytes. Growing gives the old block back first: tensors of before must be gone.
  void Reserve(int64_t bytes);
  void Release() { block_.reset(); }
  int64_t bytes() const { return block_.defined() ? block_.numel() : 0; }

  // A tensor at `offset`, a multiple of planner::kArenaAlignment; its values are whatever lies there.
  at::Tensor At(int64_t offset, at::IntArrayRef sizes, at::ScalarType dtype) const;

 private:
  at::Device device_;
  at::Tensor block_;  // uint8
};

}  // namespace longspan::trainer
