#include "worker/planner/dense_attention_memory.h"

#include <algorithm>
#include <limits>

namespace longspan::planner {
namespace {

constexpr int64_t kFp32Bytes = 4;
constexpr int64_t kFlashRows = 128;     // queries are padded to these
constexpr int64_t kEfficientRows = 32;  // of a logsumexp
constexpr int64_t kEfficientTile = 64;  // of the sums of dQ

int64_t DividedUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundedUp(int64_t a, int64_t b) { return DividedUp(a, b) * b; }

// Elements of the parts of a call.
struct Sizes {
  explicit Sizes(const DenseCall& call)
      : rows(call.blocks * call.length),
        queries(rows * call.query_heads * call.head_dim),
        keys(rows * call.key_value_heads * call.head_dim),
        sums(rows * call.query_heads),
        grouped(call.query_heads != call.key_value_heads) {}
  int64_t rows, queries, keys;
  int64_t sums;  // a value per query and head
  bool grouped;
};

int64_t EfficientSums(const DenseCall& call) {
  return call.blocks * call.query_heads * RoundedUp(call.length, kEfficientRows);
}

int64_t FlashPaddedRows(const DenseCall& call) {
  if (call.segments > 0) return call.length + kFlashRows * call.segments;
  return call.blocks * RoundedUp(call.length, kFlashRows);
}

GpuAttention KernelOf(const DenseCall& call) { return ChooseGpuAttention(call).value_or(GpuAttention::kFlash); }

int64_t Gradients(const DenseCall& call, const Sizes& sizes) {
  return (sizes.queries + 2 * sizes.keys) * call.element_bytes;
}

int64_t CudnnBackward(const DenseCall& call, const Sizes& sizes) {
  return Gradients(call, sizes) + (sizes.queries + sizes.sums) * kFp32Bytes;
}

int64_t FlashBackward(const DenseCall& call, const Sizes& sizes) {
  const int64_t head_dim = RoundedUp(call.head_dim, call.head_dim <= 128 ? 32 : 64);
  const int64_t copies = 2 * sizes.queries * call.element_bytes;  // out and its gradient, as the views are strided
  const int64_t accumulated = FlashPaddedRows(call) * call.query_heads * (head_dim + 1) * kFp32Bytes;
  const int64_t expanded = sizes.grouped ? 2 * sizes.queries * call.element_bytes : 0;
  return Gradients(call, sizes) + copies + accumulated + expanded;
}

int64_t EfficientBackward(const DenseCall& call, const Sizes& sizes) {
  const int64_t heads = sizes.queries * call.element_bytes;
  // dq, dk and dv of as many heads, and the gradient of out as a copy.
  int64_t bytes = 4 * heads + (EfficientSums(call) + sizes.sums) * kFp32Bytes;
  bytes += call.blocks * call.query_heads * RoundedUp(call.length, kEfficientTile) *
           RoundedUp(call.head_dim, kEfficientTile) * kFp32Bytes;
  if (sizes.grouped) bytes += 2 * heads + 2 * sizes.keys * call.element_bytes;  // repeated k and v; dk and dv added up
  return bytes;
}

// Two halves under one softmax, in fp32 (JoinSoftmax).
int64_t Joining(const DenseCall& call, const Sizes& sizes) {
  const int64_t in_fp32 = call.element_bytes == kFp32Bytes ? 1 : 2;
  return (in_fp32 * sizes.queries + 4 * sizes.sums) * kFp32Bytes;
}

int64_t Temporaries(const DenseCall& call) { return std::max(ForwardTemporaries(call), BackwardTemporaries(call)); }

// `count` in as few equal steps as `most` allows.
int64_t Even(int64_t count, int64_t most) {
  return DividedUp(count, DividedUp(count, std::clamp<int64_t>(most, 1, count)));
}

}  // namespace

std::optional<GpuAttention> ChooseGpuAttention(const DenseCall& call) {
  if (call.element_bytes == kFp32Bytes) return GpuAttention::kEfficient;
  if (call.head_dim % 8 != 0 || call.head_dim > 256) return std::nullopt;
  if (call.segments > 0) return GpuAttention::kFlash;
  const int64_t block_rows = call.block_rows > 0 ? call.block_rows : call.length;
  const int64_t span = ((call.blocks - 1) * block_rows + call.length) * call.row_stride;
  const bool cudnn =
      call.query_heads == call.key_value_heads && call.head_dim <= 128 && span <= std::numeric_limits<int32_t>::max();
  return cudnn ? GpuAttention::kCudnn : GpuAttention::kFlash;
}

int64_t ForwardTemporaries(const DenseCall& call) {
  const Sizes sizes(call);
  int64_t bytes = sizes.queries * call.element_bytes + sizes.sums * kFp32Bytes;
  if (KernelOf(call) == GpuAttention::kEfficient) {
    bytes += EfficientSums(call) * kFp32Bytes;
    if (sizes.grouped) bytes += 2 * sizes.queries * call.element_bytes;
  }
  return call.other_keys > 0 ? 2 * bytes + Joining(call, sizes) : bytes;
}

int64_t BackwardTemporaries(const DenseCall& call) {
  const Sizes sizes(call);
  // A contiguous logsumexp, and what the first rows give to dV.
  const int64_t beside = sizes.sums * kFp32Bytes +
                         call.blocks * (call.query_heads + call.key_value_heads) * call.head_dim * call.element_bytes;
  int64_t bytes = 0;
  switch (KernelOf(call)) {
    case GpuAttention::kCudnn:
      bytes = CudnnBackward(call, sizes);
      break;
    case GpuAttention::kFlash:
      bytes = FlashBackward(call, sizes);
      break;
    case GpuAttention::kEfficient:
      bytes = EfficientBackward(call, sizes);
      break;
  }
  // dq of the other keys is added to.
  return bytes + beside + (call.other_keys > 0 ? sizes.queries * call.element_bytes : 0);
}

DenseCall Cut(DenseCall call, const DensePart& part) {
  const int64_t group = call.query_heads / call.key_value_heads;
  call.blocks = part.blocks;
  call.key_value_heads = part.key_value_heads;
  call.query_heads = part.key_value_heads * group;
  return call;
}

DensePart PartOf(const DenseCall& call) {
  const int64_t heads = call.key_value_heads;
  const int64_t of_one = std::max<int64_t>(1, Temporaries(Cut(call, {1, 1})));
  int64_t most = std::max<int64_t>(1, kDensePartBytes / of_one);
  if (most < heads) return {1, Even(heads, most)};
  int64_t blocks = std::min(call.blocks, most / heads);
  // One block within reach of 32 bits: as many as stay so.
  if (KernelOf(Cut(call, {1, heads})) == GpuAttention::kCudnn) {
    const int64_t block_rows = call.block_rows > 0 ? call.block_rows : call.length;
    const int64_t rows = std::numeric_limits<int32_t>::max() / std::max<int64_t>(1, call.row_stride);
    blocks = std::clamp<int64_t>((rows - call.length) / std::max<int64_t>(1, block_rows) + 1, 1, blocks);
  }
  return {Even(call.blocks, blocks), heads};
}

}  // namespace longspan::planner
