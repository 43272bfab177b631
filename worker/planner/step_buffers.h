// The buffers of one forward and backward pass: what each is called, how large it is, and during which stages it holds
// a value. From this list the planner knows the bytes of a pass before anything is allocated, and the trainer takes its
// buffers by the same list, so that the two cannot disagree.
//
//   forward     attention ─► mlp ─► … every layer …  ─► loss
//   rerun       attention ─► mlp ─► … a segment …
//   backward    recompute ─► mlp ─► attention ─► projection ─► … every layer, from the last …
//
// Buffers whose stages do not meet share memory: the arena is as large as the fullest stage, not as their sum. Values
// that live from the forward pass to the backward pass are not here but in KeptValues (kept_values.h).
//
// Pure. Legend: N rows (tokens of the micro-batch), t rows of a tile, d hidden size, F intermediate size, V vocabulary,
// Hq and Hkv heads of D, R ranks of the LoRA layers that read the same input, e bytes of an element.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "worker/planner/memory_policy.h"

namespace longspan::planner {

// One fused linear layer: q, k and v are one, gate and up another.
struct LinearShape {
  int64_t inputs = 0, outputs = 0;
  int64_t ranks = 0;      // R; 0 without LoRA
  bool unpacked = false;  // the weight stands in 4 bits: each pass unpacks it first
};

// One pass over a micro-batch on one rank.
struct StepShape {
  int64_t rows = 0;           // N
  int64_t element_bytes = 4;  // e, of the compute dtype
  int64_t num_hidden_layers = 0;
  int64_t hidden_size = 0, intermediate_size = 0, vocab_size = 0;
  int64_t query_heads = 0, key_value_heads = 0, head_dim = 0;
  bool has_gate = true;
  bool parallel_residual = false;
  bool has_head_norms = false;
  LinearShape query_key_value, output, mlp_in, mlp_out;
  bool dropout = false;         // of LoRA
  bool fp8 = false;             // products with the linear layers' weights are in 8 bits
  bool trains_weights = false;  // the linear layers
  bool trains_norms = false;
  bool trains_biases = false;  // of the linear layers
  bool trains_head = false;
  int64_t weight_ranks = 0;  // that share the linear layers' weights (weight_shards.h); 0: each has them whole
  bool on_gpu = false;
  int64_t attention_scratch_bytes = 0;  // of the attention kernel
  // Of sequences whose tokens lie on several ranks; N are this rank's. 0: no such traffic.
  int64_t halo_rows = 0;  // S2: tokens that the rank before lends, of all sequences of the pass
  int64_t ring_rows = 0;  // full attention: tokens of the largest rank, likewise

  // Whether a pass over this layer builds its weight first: 4 bits are unpacked; in fp32 without dropout LoRA is folded
  // in.
  bool BuildsWeight(const LinearShape& linear) const {
    return linear.unpacked || (linear.ranks > 0 && element_bytes == 4 && !dropout);
  }
  // Whether it does so in a buffer of its own: gathered weights are there to be written to.
  bool CopiesWeight(const LinearShape& linear) const { return BuildsWeight(linear) && weight_ranks == 0; }
  // Columns of q, k and v of so many key/value heads, with their query heads.
  int64_t query_key_value_size(int64_t heads) const { return heads * (query_heads / key_value_heads + 2) * head_dim; }
  int64_t query_size() const { return query_heads * head_dim; }
  int64_t query_key_value_size() const { return (query_heads + 2 * key_value_heads) * head_dim; }
  // K and V of the heads that the moved half of S2 reads: those from query head ceil(Hq / 2) on.
  int64_t moved_key_value_size() const {
    const int64_t unmoved = (query_heads + 1) / 2 / (query_heads / key_value_heads);
    return 2 * (key_value_heads - unmoved) * head_dim;
  }
  int64_t mlp_in_size() const { return (has_gate ? 2 : 1) * intermediate_size; }
};

// LoRA's kernels on a GPU (kernels/lora_products) take so many ranks, in bf16, and sum up in parts, so that there is
// work for all of it. `kept` and `summed`: how long the result and the sum are.
inline constexpr int64_t kLoraKernelRanksMax = 64;
int64_t LoraSumParts(int64_t kept, int64_t summed);
// At least as many fp32 numbers as the parts of a result with `kept` columns, and of any with fewer, have.
int64_t LoraSumElements(int64_t ranks, int64_t kept, int64_t summed);

enum class Slot : int {
  kHidden,              // (N, d) the residual stream, which layers change in place where it is not kept
  kNormed,              // (t, d) a norm's output
  kNormStatistics,      // (t, 2) fp32
  kColumnSums,          // fp32 partial sums over rows, of the gradients of norms and biases
  kQueryKeyValue,       // (N, (Hq + 2·Hkv)·D) where it is not kept
  kTurnedHeads,         // (N, (Hq + Hkv)·D) q and k behind head norms
  kHeadStatistics,      // (N, Hq + Hkv) fp32
  kAttentionOutput,     // (N, Hq·D) where it is not kept
  kLogSumExp,           // (N, Hq) fp32, likewise
  kAttentionScratch,    // of the kernel
  kHaloSent,            // K and V of the moved heads of the last tokens, for the next rank; then what it gives back
  kHalo,                // the same of the rank before
  kHaloGradient,        // of these, for the rank before
  kRingBlocks,          // 2 blocks of K and V of a rank
  kRingOutput,          // (N, Hq·D) over one block
  kRingLogSumExp,       // (N, Hq) fp32, likewise
  kRingGradients,       // 3 blocks
  kResidual,            // (t, d) where it is not kept
  kMlpInner,            // (t, 2F) or (t, F) where it is not kept
  kMlpSigmoid,          // (t, F) fp32
  kMlpProduct,          // (t, F)
  kMlpProductGradient,  // (t, F)
  kMlpInnerGradient,    // (t, 2F) or (t, F)
  kNormedGradient,      // (t, d)
  kGradient,            // (N, d) of the residual stream
  kAttentionOutputGradient,  // (N, Hq·D)
  kQueryKeyValueGradient,    // (N, (Hq + 2·Hkv)·D)
  kScratchQueryKeyValue,     // weights built for a pass
  kScratchOutput,
  kScratchMlpIn,
  kScratchMlpOut,
  kLoraInner,           // (t, R) x·Aᵀ
  kLoraInnerGradient,   // (t, R)
  kLoraAGradient,       // (R, inputs), of GEMMs
  kLoraBGradient,       // (R, outputs), likewise
  kLoraSums,            // fp32 sums in parts, of kernels on a GPU
  kDropped,             // (t, inputs) the input of A behind dropout
  kDroppedGradient,     // (t, inputs)
  kFp8Codes,            // (t, inputs or outputs) bytes, what a product in 8 bits reads
  kFp8Scales,           // (t) fp32
  kWeightProduct,       // dW of one tile, where the compute dtype is not fp32
  kLossHidden,          // (l, d) rows of scored tokens that do not follow each other; l rows of a tile of the loss
  kLossNormed,          // (l, d)
  kLogits,              // (l, V)
  kLogitsFloat,         // (l, V) fp32, where the compute dtype is not
  kProbabilities,       // (l, V) fp32
  kLossGradient,        // (l, d)
  kLossHiddenGradient,  // (l, d), like kLossHidden
  kCount
};
inline constexpr int kSlotCount = static_cast<int>(Slot::kCount);
std::string_view NameOf(Slot slot);

// Bits. The stages of rerun are those of a segment that runs again (memory_policy.h): as forward, beside the gradient.
enum Stage : unsigned {
  kForwardAttention = 1,
  kForwardMlp = 2,
  kLoss = 4,
  kRerunAttention = 8,
  kRerunMlp = 16,
  kBackwardRecompute = 32,
  kBackwardMlp = 64,
  kBackwardAttention = 128,
  kBackwardProjection = 256,
};

struct Buffer {
  Slot slot = Slot::kCount;
  int64_t bytes = 0;
  unsigned stages = 0;
};

// Whether the gradients of q, k and v are made a tile of heads at a time.
bool TilesHeads(const StepShape& shape, const MemoryPolicy& policy);

// Of training, and of a pass that only goes forward (evaluation, generation). Buffers without bytes are left out.
std::vector<Buffer> TrainingBuffers(const StepShape& shape, const MemoryPolicy& policy);
std::vector<Buffer> ForwardBuffers(const StepShape& shape, const MemoryPolicy& policy);

// Where each slot lies in one block of memory. Slots that are not part of it have no bytes.
struct ArenaLayout {
  struct Place {
    int64_t offset = 0, bytes = 0;
  };
  Place places[kSlotCount] = {};
  int64_t bytes = 0;
};
inline constexpr int64_t kArenaAlignment = 64;
// Gradients over rows are summed in so many parts, and these added up: on a GPU a few for each multiprocessor.
inline constexpr int64_t kColumnSumParts = 16, kGpuColumnSumParts = 528;
// Buffers that meet in a stage do not overlap. Each lies as low as those before it let it; of a few orders, the one
// that takes the least memory.
ArenaLayout LayOut(std::vector<Buffer> buffers);
// Bytes of the buffers that must exist at once: no layout is smaller.
int64_t FullestStage(const std::vector<Buffer>& buffers);

}  // namespace longspan::planner
