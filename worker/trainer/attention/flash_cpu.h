// Exact attention in fp32 on the processor: ATen's flash attention with views to write into, nothing allocated, and
// fast for short blocks too. Reference: the softmax formula in fp64 of flash_cpu_test.cc; measured by
// longspan-attention-bench.
//
// Legend: (blocks, heads, length, D) views of any strides whose last is 1; Hq query heads share Hkv key/value heads,
// Hq % Hkv == 0; scores are scaled by 1/sqrt(D); 1 <= D <= 256, fast for multiples of 16. Outputs overlap nothing else,
// and views of one call do not overlap themselves.
//
// Results depend on the instructions used, and on nothing else: not on the number of threads, the strides, the place of
// a block in its batch, or what lies behind a query's sight. Non-finite inputs give non-finite outputs.
//
// Thread-safe as long as calls write into different tensors and use different workspaces. Throws c10::Error for shapes,
// strides and types that do not fit.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace longspan::trainer {

// What the kernels are compiled for. kNone: this machine has no usable one (it lacks AVX2 and FMA), and the functions
// below throw.
enum class FlashInstructions { kNone, kAvx2, kAvx512 };
const char* NameOf(FlashInstructions instructions);
FlashInstructions BestFlashInstructions();
std::vector<FlashInstructions> UsableFlashInstructions();

// fp32 values that a workspace needs for `threads` threads to work at once: 0.15 MiB for each at D = 64, 0.5 at 256. A
// smaller one serves fewer threads.
int64_t FlashWorkspaceSize(int64_t head_dim, int64_t threads);

struct FlashSetting {
  at::Tensor workspace;  // contiguous fp32, at least FlashWorkspaceSize(D, 1) values; contents do not matter
  FlashInstructions instructions = BestFlashInstructions();
};

// The kernels know what q is (fp32, on the CPU, D <= 256), and `setting` names instructions.
bool FlashTakes(const at::Tensor& q, const FlashSetting& setting);

// A run of keys and values (blocks, Hkv, keys, D). Queries see several runs as if they were one.
struct FlashKeys {
  at::Tensor k, v;
  bool causal = false;  // query i sees keys 0 to i, of as many keys as queries; else every key
};
struct FlashKeyGradients {
  at::Tensor k, v;
  bool adds = false;  // to what is there; else overwrites
};

struct FlashQueries {
  at::Tensor q, out;     // (blocks, Hq, length, D)
  at::Tensor logsumexp;  // (blocks, Hq, length), any strides: of the scaled scores, natural
  // Backward: out and logsumexp are of more keys than the call has, which other calls go back through.
  bool joined = false;
};
struct FlashQueryGradients {
  at::Tensor out;  // (blocks, Hq, length, D)
  at::Tensor q;    // likewise
  bool adds = false;
};

// Writes queries.out and queries.logsumexp. `keys` has one or two runs.
void FlashForward(const FlashQueries& queries, const std::vector<FlashKeys>& keys, const FlashSetting& setting);

// Writes the gradients of q and of each run of keys, from gradients.out and what FlashForward wrote. With one causal
// run, unless it is joined, the first query sees only itself: q and k get exactly nothing from it.
void FlashBackward(const FlashQueries& queries, const std::vector<FlashKeys>& keys,
                   const FlashQueryGradients& gradients, const std::vector<FlashKeyGradients>& key_gradients,
                   const FlashSetting& setting);

}  // namespace longspan::trainer
