// What LibTorch's attention operators take for a moment on a GPU, and how a dense call is cut into parts so that this
// stays small: they have no variant that writes into the caller's memory. The trainer cuts its calls by the same
// functions that the planner counts with.
//
// Blocks do not see each other, and key/value heads do not meet, so a part is some blocks of some key/value heads with
// their query heads. A part takes at most kDensePartBytes where one block of one key/value head does; that is some
// thousands of tiles of 128 queries, of which a GPU works on one or two hundred at a time.
//
// Sources, as facts, of PyTorch 2.11 and cuDNN 9: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp
// (mha_fwd, mha_bwd, mha_varlen_bwd: gradients, dq_accum, softmax_d, expanded dk and dv), .../cuda/
// attention_backward.cu (contiguous copies of out and its gradient; delta), mem_eff_attention/kernel_backward.h
// (workspace_size), native/cudnn/MHA.cpp (outputs and workspace) with cudnn-frontend's CompositeSDPABackwardNode (fp32
// sums of dQ and of dO·O). What cuDNN itself adds to the workspace is not published, nor counted; neither are the
// partial outputs of flash attention with few tiles, some MiB.
//
// Pure. Elements are those of the compute dtype.
#pragma once

#include <cstdint>
#include <optional>

namespace longspan::planner {

enum class GpuAttention { kCudnn, kFlash, kEfficient };

// Equal blocks; as AttentionCall of the trainer, in sizes alone.
struct DenseCall {
  int64_t blocks = 0, query_heads = 0, key_value_heads = 0, length = 0, head_dim = 0;
  int64_t element_bytes = 2;
  int64_t row_stride = 0;  // elements from one row to the next, of the widest tensor
  int64_t block_rows = 0;  // rows from one block to the next; 0: `length`
  int64_t other_keys = 0;  // each block sees these too: a call of their own, joined by the logsumexp
  int64_t segments = 0;    // above 0: one block of so many pieces that do not see each other (flash attention alone)
};

// Absent where none of them can: bf16 needs heads of a multiple of 8 up to 256. cuDNN takes as many query as key/value
// heads of up to 128, and tensors whose last element is within 2^31 of their first, since it counts in 32 bits.
std::optional<GpuAttention> ChooseGpuAttention(const DenseCall& call);

int64_t ForwardTemporaries(const DenseCall& call);
int64_t BackwardTemporaries(const DenseCall& call);

inline constexpr int64_t kDensePartBytes = int64_t{512} << 20;
struct DensePart {
  int64_t blocks = 0, key_value_heads = 0;
};
// At least one of each; as even as the count allows.
DensePart PartOf(const DenseCall& call);
DenseCall Cut(DenseCall call, const DensePart& part);

}  // namespace longspan::planner
