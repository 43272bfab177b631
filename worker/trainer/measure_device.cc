#include "worker/trainer/measure_device.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "worker/trainer/attention/attention.h"
#include "worker/trainer/memory/host_memory.h"
#include "worker/trainer/model/matrix_product.h"

namespace longspan::trainer {
namespace {

constexpr int kRuns = 7;  // after one that is not counted

// `amount` of whatever one run does, per second, at best.
template <typename Run>
double BestRate(double amount, Run run) {
  run();
  double best = 0;
  for (int i = 0; i < kRuns; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, amount / seconds.count());
  }
  return best;
}

double GemmRate() {
  constexpr int64_t kRows = 1024, kSize = 2048;
  const at::Tensor x = at::ones({kRows, kSize}), weight = at::ones({kSize, kSize}), y = at::empty({kRows, kSize});
  return BestRate(2.0 * kRows * kSize * kSize, [&] { MultiplyInto(x, weight.t(), y); });
}

// Forward and backward; only pairs that attend count.
double AttentionRate() {
  constexpr int64_t kTokens = 2048, kHeads = 8, kHeadDim = 64;
  const auto draw = [] { return at::randn({kTokens, kHeads, kHeadDim}); };
  const at::Tensor q = draw(), k = draw(), v = draw(), out = at::empty_like(q), gradient = draw();
  const AttentionGradients gradients{at::empty_like(q), at::empty_like(q), at::empty_like(q)};
  const AttentionPlan plan = PlanFullAttention({1, kTokens, kHeads, kHeads});
  FlashSetting setting;
  setting.workspace = at::empty({FlashWorkspaceSize(kHeadDim, at::get_num_threads())});
  const double pairs = kTokens * (kTokens + 1) / 2.0 * kHeads;
  constexpr double kProducts = 2 + 5;  // forward and backward
  return BestRate(kProducts * 2 * pairs * kHeadDim, [&] {
    const std::vector<at::Tensor> logsumexp = AttentionForward(plan, q, k, v, out, setting);
    AttentionBackward(plan, {q, k, v, out}, logsumexp, gradient.clone(), gradients, setting);
  });
}

constexpr int64_t kCopiedBytes = int64_t{128} << 20;  // beyond any cache

// Bytes read and written.
double MemoryRate() {
  const at::Tensor from = at::ones({kCopiedBytes / 4}), to = at::empty_like(from);
  return BestRate(2.0 * kCopiedBytes, [&] { at::Tensor(to).copy_(from); });
}

// One way, by the one thread that copies kept values.
double HostCopyRate() {
  const at::Tensor device = at::ones({kCopiedBytes / 4});
  HostBlock host;
  host.Reserve(kCopiedBytes);
  return BestRate(static_cast<double>(kCopiedBytes),
                  [&] { std::memcpy(host.data(), device.const_data_ptr(), static_cast<size_t>(kCopiedBytes)); });
}

}  // namespace

planner::DeviceProfile MeasureDevice(int64_t threads) {
  at::set_num_threads(static_cast<int>(threads));
  planner::DeviceProfile profile = planner::CpuProfile(threads);
  profile.name = fmt::format("cpu, {} thread{}, measured", threads, threads > 1 ? "s" : "");
  profile.gemm_flops_per_second = GemmRate();
  profile.attention_flops_per_second = AttentionRate();
  profile.memory_bytes_per_second = MemoryRate();
  profile.host_copy_bytes_per_second = HostCopyRate();
  return profile;
}

}  // namespace longspan::trainer
