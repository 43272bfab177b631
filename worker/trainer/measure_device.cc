#include "worker/trainer/measure_device.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "worker/trainer/attention/attention.h"
#include "worker/trainer/device.h"
#include "worker/trainer/gpu/gpu_device.h"
#include "worker/trainer/memory/host_memory.h"
#include "worker/trainer/model/matrix_product.h"

namespace longspan::trainer {
namespace {

constexpr int kRuns = 7;  // after one that is not counted

// What is measured with: long enough that starting the work does not count.
struct Sizes {
  int64_t gemm_rows = 1024, gemm_size = 2048;
  int64_t attention_tokens = 2048, attention_heads = 8, head_dim = 64;
  int64_t copied_bytes = int64_t{128} << 20;  // beyond any cache
};
constexpr Sizes kOnCpu{};
constexpr Sizes kOnGpu{8192, 8192, 16384, 16, 128, int64_t{1} << 30};

struct Bench {
  at::TensorOptions options;
  Sizes sizes;
};

// The work of a GPU is queued: it is done when the device says so.
void Finish(const Bench& bench) {
  if (bench.options.device().is_cuda()) gpu::Synchronize();
}

// `amount` of whatever one run does, per second, at best.
template <typename Run>
double BestRate(const Bench& bench, double amount, Run run) {
  run();
  Finish(bench);
  double best = 0;
  for (int i = 0; i < kRuns; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run();
    Finish(bench);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, amount / seconds.count());
  }
  return best;
}

double GemmRate(const Bench& bench) {
  const int64_t rows = bench.sizes.gemm_rows, size = bench.sizes.gemm_size;
  const at::Tensor x = at::ones({rows, size}, bench.options), weight = at::ones({size, size}, bench.options);
  const at::Tensor y = at::empty({rows, size}, bench.options);
  return BestRate(bench, 2.0 * static_cast<double>(rows) * static_cast<double>(size * size),
                  [&] { MultiplyInto(x, weight.t(), y); });
}

// Forward and backward; only pairs that attend count.
double AttentionRate(const Bench& bench) {
  const auto [gemm_rows, gemm_size, tokens, heads, head_dim, copied] = bench.sizes;
  const auto draw = [&, shape = std::array<int64_t, 3>{tokens, heads, head_dim}] {
    return at::randn(shape, bench.options);
  };
  const at::Tensor q = draw(), k = draw(), v = draw(), out = at::empty_like(q), drawn = draw();
  const at::Tensor gradient = at::empty_like(q);
  const AttentionGradients gradients{at::empty_like(q), at::empty_like(q), at::empty_like(q)};
  const AttentionPlan plan = PlanFullAttention({1, tokens, heads, heads});
  FlashSetting setting;
  if (!q.is_cuda()) setting.workspace = at::empty({FlashWorkspaceSize(head_dim, at::get_num_threads())});
  const double pairs = static_cast<double>(tokens) * static_cast<double>(tokens + 1) / 2 * static_cast<double>(heads);
  constexpr double kProducts = 2 + 5;  // forward and backward
  return BestRate(bench, kProducts * 2 * pairs * static_cast<double>(head_dim), [&] {
    const std::vector<at::Tensor> logsumexp = AttentionForward(plan, q, k, v, out, setting);
    gradient.copy_(drawn);
    AttentionBackward(plan, {q, k, v, out}, logsumexp, gradient, gradients, setting);
  });
}

at::Tensor Floats(const Bench& bench) {
  return at::ones({bench.sizes.copied_bytes / 4}, bench.options.dtype(at::kFloat));
}

// Bytes read and written.
double MemoryRate(const Bench& bench) {
  const at::Tensor from = Floats(bench), to = at::empty_like(from);
  return BestRate(bench, 2.0 * static_cast<double>(bench.sizes.copied_bytes), [&] { at::Tensor(to).copy_(from); });
}

// One way: on a CPU by the one thread that copies kept values, on a GPU by its copy engine.
double HostCopyRate(const Bench& bench) {
  const at::Tensor device = Floats(bench);
  const bool on_gpu = device.is_cuda();
  HostBlock host(/*pinned=*/on_gpu);
  host.Reserve(bench.sizes.copied_bytes);
  const auto bytes = static_cast<double>(bench.sizes.copied_bytes);
  if (!on_gpu) {
    return BestRate(bench, bytes, [&] {
      std::memcpy(host.data(), device.const_data_ptr(), static_cast<size_t>(bench.sizes.copied_bytes));
    });
  }
  const at::Tensor block = at::from_blob(host.data(), device.sizes(), at::kFloat);
  const double out = BestRate(bench, bytes, [&] { at::Tensor(block).copy_(device, /*non_blocking=*/true); });
  const double in = BestRate(bench, bytes, [&] { at::Tensor(device).copy_(block, /*non_blocking=*/true); });
  return std::min(out, in);
}

}  // namespace

planner::DeviceProfile MeasureDevice(at::Device device, int64_t threads) {
  at::set_num_threads(static_cast<int>(threads));
  const bool on_gpu = device.is_cuda();
  planner::DeviceProfile profile = ProfileOf(device, threads);
  profile.name = on_gpu ? fmt::format("{}, measured", gpu::Describe().name)
                        : fmt::format("cpu, {} thread{}, measured", threads, threads > 1 ? "s" : "");
  const Bench bench{at::TensorOptions(device).dtype(on_gpu ? at::kBFloat16 : at::kFloat), on_gpu ? kOnGpu : kOnCpu};
  profile.gemm_flops_per_second = GemmRate(bench);
  profile.attention_flops_per_second = AttentionRate(bench);
  profile.memory_bytes_per_second = MemoryRate(bench);
  profile.host_copy_bytes_per_second = HostCopyRate(bench);
  return profile;
}

}  // namespace longspan::trainer
