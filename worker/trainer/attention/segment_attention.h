// Attention within segments of unlike lengths (segments.h), one call for all of them: flash attention's variable length
// in bf16 on a GPU, a part of the heads at a time (dense_attention_memory.h). Elsewhere, and in fp32, each segment is a
// dense call. Which one it is is logged once.
//
// Legend and types as in block_attention.h: queries (1, Hq, N, D) and one causal run of keys (1, Hkv, N, D).
// Thread-safe.
#pragma once

#include "worker/trainer/attention/attention.h"
#include "worker/trainer/attention/flash_cpu.h"

namespace longspan::trainer {

void SegmentsForward(const SegmentList& segments, const FlashQueries& queries, const FlashKeys& keys,
                     const FlashSetting& setting);

// As BlockBackward: takes gradients.out over, where the first rows of segments are zero afterwards.
void SegmentsBackward(const SegmentList& segments, const FlashQueries& queries, const FlashKeys& keys,
                      const FlashQueryGradients& gradients, const FlashKeyGradients& key_gradients,
                      const FlashSetting& setting);

// Takes the first row of every segment out of `out_gradient` (N, Hq, D) and returns what it adds to dV there:
// (segments, Hkv, D).
at::Tensor TakeFirstRowsOfSegments(const SegmentList& segments, const at::Tensor& out_gradient,
                                   int64_t key_value_heads);

}  // namespace longspan::trainer
