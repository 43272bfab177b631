#include "worker/trainer/attention/flash_cpu.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "worker/trainer/attention/flash_cpu_problem.h"
#include "worker/trainer/model/row_parallel.h"

namespace longspan::trainer {
namespace {

constexpr int64_t kHeadDimMax = 256;
constexpr int64_t kProductSizeOfThread = 500'000;  // some 20 microseconds of work; less is not worth waking a thread

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the larger of the two splits of flash_cpu_kernel.h takes.
int64_t ScratchFloats(int64_t head_dim) {
  const int64_t size = CeilDiv(head_dim, kFlashVectorFloatsMax) * kFlashVectorFloatsMax;
  const int64_t forward = (2 * kFlashTile + kFlashForwardRows) * size + kFlashStripRows * kFlashTile +
                          kFlashForwardRows + kFlashVectorFloatsMax + kFlashForwardRows * kFlashVectorFloatsMax;
  const int64_t backward = (7 * kFlashTile + kFlashStripRows) * size + 2 * kFlashTile * kFlashTile + 2 * kFlashTile;
  return std::max(forward, backward);
}

const FlashKernels& KernelsFor(FlashInstructions instructions) {
  const std::vector<FlashInstructions> usable = UsableFlashInstructions();
  TORCH_CHECK(std::find(usable.begin(), usable.end(), instructions) != usable.end(), "flash attention with ",
              NameOf(instructions), " on a machine without it");
#ifdef __x86_64__
  if (instructions == FlashInstructions::kAvx512) return kFlashAvx512;
  return kFlashAvx2;
#else
  TORCH_CHECK(false, "flash attention in a build without its kernels");
#endif
}

void CheckFloats(const at::Tensor& tensor, at::IntArrayRef sizes, const char* name) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_cpu(), "flash attention wants fp32 on the CPU: ", name);
  TORCH_CHECK(tensor.sizes() == sizes, "flash attention: ", name, " is ", tensor.sizes(), " and not ", sizes);
}

FlashView ViewOf(const at::Tensor& tensor, at::IntArrayRef sizes, const char* name) {
  CheckFloats(tensor, sizes, name);
  TORCH_CHECK(sizes.size() == 3 || tensor.stride(3) == 1 || sizes[3] == 1,
              "flash attention wants last stride 1: ", name);
  return {tensor.data_ptr<float>(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

FlashProblem ProblemOf(const FlashQueries& queries, const std::vector<FlashKeys>& keys) {
  TORCH_CHECK(queries.q.dim() == 4 && queries.q.numel() > 0 && queries.q.size(3) <= kHeadDimMax,
              "flash attention wants queries (blocks, heads, length, D <= ", kHeadDimMax, "), not ", queries.q.sizes());
  TORCH_CHECK(keys.size() == 1 || keys.size() == 2, "flash attention of ", keys.size(), " runs of keys");
  TORCH_CHECK(keys[0].k.dim() == 4 && keys[0].k.size(1) > 0 && queries.q.size(1) % keys[0].k.size(1) == 0,
              "flash attention of queries ", queries.q.sizes(), " and keys ", keys[0].k.sizes());
  FlashProblem problem;
  problem.blocks = queries.q.size(0);
  problem.query_heads = queries.q.size(1);
  problem.key_value_heads = keys[0].k.size(1);
  problem.length = queries.q.size(2);
  problem.head_dim = queries.q.size(3);
  problem.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(problem.head_dim)));
  problem.q = ViewOf(queries.q, queries.q.sizes(), "q");
  problem.out = ViewOf(queries.out, queries.q.sizes(), "out");
  problem.logsumexp = ViewOf(queries.logsumexp, queries.q.sizes().slice(0, 3), "logsumexp");
  for (const FlashKeys& run : keys) {
    FlashSegment& segment = problem.segments[problem.segment_count++];
    TORCH_CHECK(run.k.dim() == 4 && run.k.size(2) > 0 && (!run.causal || run.k.size(2) == problem.length),
                "flash attention of ", problem.length, " queries and keys ", run.k.sizes());
    segment.length = run.k.size(2);
    segment.causal = run.causal;
    const int64_t sizes[] = {problem.blocks, problem.key_value_heads, segment.length, problem.head_dim};
    segment.k = ViewOf(run.k, sizes, "k");
    segment.v = ViewOf(run.v, sizes, "v");
  }
  return problem;
}

// Multiply-adds of one product of queries and keys, as if all were seen.
int64_t ProductSize(const FlashProblem& problem) {
  int64_t keys = 0;
  for (int run = 0; run < problem.segment_count; ++run) keys += problem.segments[run].length;
  return problem.blocks * problem.query_heads * problem.length * keys * problem.head_dim;
}

using FlashTask = void (*)(const FlashProblem& problem, int64_t task, float* scratch);

// Threads take tasks as they come; which thread takes which does not matter.
void RunTasks(const FlashProblem& problem, int64_t tasks, FlashTask run, const at::Tensor& workspace) {
  const int64_t scratch_floats = ScratchFloats(problem.head_dim);
  TORCH_CHECK(workspace.defined() && workspace.is_contiguous() && workspace.scalar_type() == at::kFloat &&
                  workspace.is_cpu() && workspace.numel() >= scratch_floats,
              "flash attention wants a workspace of ", scratch_floats, " fp32 values");
  float* scratch = workspace.data_ptr<float>();
  const int64_t threads = std::min<int64_t>({workspace.numel() / scratch_floats, tasks, at::get_num_threads(),
                                             CeilDiv(ProductSize(problem), kProductSizeOfThread)});
  const int64_t tasks_at_once = std::clamp<int64_t>(tasks / (threads * 16), 1, 32);
  std::atomic<int64_t> next{0};
  ForRowRanges(threads, /*grain=*/1, [&](int64_t thread, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(tasks_at_once)) < tasks;) {
      const int64_t end = std::min(tasks, begin + tasks_at_once);
      for (int64_t task = begin; task < end; ++task) run(problem, task, scratch + thread * scratch_floats);
    }
  });
}

}  // namespace

const char* NameOf(FlashInstructions instructions) {
  switch (instructions) {
    case FlashInstructions::kNone:
      return "none";
    case FlashInstructions::kAvx2:
      return "AVX2";
    case FlashInstructions::kAvx512:
      return "AVX-512";
  }
  return "unknown";
}

FlashInstructions BestFlashInstructions() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return __builtin_cpu_supports("avx512f") ? FlashInstructions::kAvx512 : FlashInstructions::kAvx2;
  }
#endif
  return FlashInstructions::kNone;
}

std::vector<FlashInstructions> UsableFlashInstructions() {
  switch (BestFlashInstructions()) {
    case FlashInstructions::kNone:
      return {};
    case FlashInstructions::kAvx2:
      return {FlashInstructions::kAvx2};
    case FlashInstructions::kAvx512:
      return {FlashInstructions::kAvx2, FlashInstructions::kAvx512};
  }
  return {};
}

bool FlashTakes(const at::Tensor& q, const FlashSetting& setting) {
  return q.is_cpu() && q.scalar_type() == at::kFloat && q.size(-1) <= kHeadDimMax &&
         setting.instructions != FlashInstructions::kNone;
}

int64_t FlashWorkspaceSize(int64_t head_dim, int64_t threads) { return threads * ScratchFloats(head_dim); }

void FlashForward(const FlashQueries& queries, const std::vector<FlashKeys>& keys, const FlashSetting& setting) {
  const FlashProblem problem = ProblemOf(queries, keys);
  const int64_t tasks = problem.blocks * problem.query_heads * CeilDiv(problem.length, kFlashForwardRows);
  RunTasks(problem, tasks, KernelsFor(setting.instructions).forward, setting.workspace);
}

void FlashBackward(const FlashQueries& queries, const std::vector<FlashKeys>& keys,
                   const FlashQueryGradients& gradients, const std::vector<FlashKeyGradients>& key_gradients,
                   const FlashSetting& setting) {
  FlashProblem problem = ProblemOf(queries, keys);
  TORCH_CHECK(key_gradients.size() == keys.size(), "flash attention: gradients of other keys than were given");
  problem.dout = ViewOf(gradients.out, queries.q.sizes(), "gradient of out");
  problem.dq = ViewOf(gradients.q, queries.q.sizes(), "gradient of q");
  problem.adds_to_dq = gradients.adds;
  problem.joined = queries.joined;
  for (size_t run = 0; run < keys.size(); ++run) {
    FlashSegment& segment = problem.segments[run];
    segment.dk = ViewOf(key_gradients[run].k, keys[run].k.sizes(), "gradient of k");
    segment.dv = ViewOf(key_gradients[run].v, keys[run].k.sizes(), "gradient of v");
    segment.adds = key_gradients[run].adds;
  }
  RunTasks(problem, problem.blocks * problem.key_value_heads, KernelsFor(setting.instructions).backward,
           setting.workspace);
}

}  // namespace longspan::trainer
