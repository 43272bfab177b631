// The working buffers of a pass, by name: what is computed and used up within a layer, or within the loss. The
// planner's list says which there are, how large they are, and which may lie in the same memory
// (worker/planner/step_buffers.h).
//
// A tensor that Take returned is good until the slot is taken again, or until a slot that shares its memory is: the
// caller keeps to the stages of the list. Without a layout each slot has memory of its own, which grows to what was
// asked for; tests hold the two to the same bits, which catches a stage that the list forgot. Not thread-safe.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "worker/planner/step_buffers.h"
#include "worker/trainer/memory/byte_block.h"

namespace longspan::trainer {

using planner::Slot;

class Arena {
 public:
  explicit Arena(at::Device device = at::kCPU);

  // From now on slots lie as `layout` says. The block grows where it must, and is kept else.
  void Use(const planner::ArenaLayout& layout);
  // From now on each slot has memory of its own.
  void UseOwnMemory();
  // Gives everything back.
  void Release();

  // c10::Error when the layout has less room for the slot: then the list is wrong.
  at::Tensor Take(Slot slot, at::IntArrayRef sizes, at::ScalarType dtype);

  int64_t bytes() const;
  at::Device device() const { return device_; }

 private:
  at::Device device_;
  bool has_layout_ = false;
  planner::ArenaLayout layout_;
  ByteBlock block_;
  std::vector<ByteBlock> own_;  // of each slot
};

// For partial sums over rows, fp32: as many parts as the device adds up at once.
at::Tensor ColumnSumScratch(int64_t columns, Arena& arena);

}  // namespace longspan::trainer
