#include "worker/trainer/memory/arena.h"

#include <string>

namespace longspan::trainer {

Arena::Arena(at::Device device) : device_(device), block_(device), own_(planner::kSlotCount, ByteBlock(device)) {}

void Arena::Use(const planner::ArenaLayout& layout) {
  for (ByteBlock& block : own_) block.Release();
  layout_ = layout;
  has_layout_ = true;
  block_.Reserve(layout.bytes);
}

void Arena::UseOwnMemory() {
  block_.Release();
  has_layout_ = false;
}

void Arena::Release() {
  for (ByteBlock& block : own_) block.Release();
  block_.Release();
  layout_ = {};
  has_layout_ = false;
}

at::Tensor Arena::Take(Slot slot, at::IntArrayRef sizes, at::ScalarType dtype) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(dtype));
  if (!has_layout_) {
    ByteBlock& own = own_[static_cast<size_t>(slot)];
    own.Reserve(bytes);
    return own.At(0, sizes, dtype);
  }
  const planner::ArenaLayout::Place& place = layout_.places[static_cast<size_t>(slot)];
  TORCH_CHECK(bytes <= place.bytes, "the buffer \"", std::string(planner::NameOf(slot)), "\" wants ", bytes,
              " bytes, planned were ", place.bytes);
  return block_.At(place.offset, sizes, dtype);
}

int64_t Arena::bytes() const {
  int64_t bytes = block_.bytes();
  for (const ByteBlock& block : own_) bytes += block.bytes();
  return bytes;
}

at::Tensor ColumnSumScratch(int64_t columns, Arena& arena) {
  const int64_t parts = arena.device().is_cuda() ? planner::kGpuColumnSumParts : planner::kColumnSumParts;
  return arena.Take(Slot::kColumnSums, {parts, columns}, at::kFloat);
}

}  // namespace longspan::trainer
