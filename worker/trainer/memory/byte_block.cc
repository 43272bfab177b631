#include "worker/trainer/memory/byte_block.h"

namespace longspan::trainer {

void ByteBlock::Reserve(int64_t bytes) {
  if (bytes <= this->bytes()) return;
  block_.reset();
  block_ = at::empty({bytes}, at::TensorOptions(device_).dtype(at::kByte));
}

at::Tensor ByteBlock::At(int64_t offset, at::IntArrayRef sizes, at::ScalarType dtype) const {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(dtype));
  TORCH_CHECK(offset >= 0 && offset + bytes <= this->bytes(), "bytes ", offset, " to ", offset + bytes,
              " of a block of ", this->bytes());
  return block_.narrow(0, offset, bytes).view(dtype).view(sizes);
}

}  // namespace longspan::trainer
