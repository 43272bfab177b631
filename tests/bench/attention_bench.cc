// GFLOP/s of causal fp32 attention, this project's kernels against ATen's, forward and backward: 8 heads, 4096 tokens
// in blocks of `length`, views of one fused projection as a layer has them. A causal product counts half its
// multiply-adds.
//
//   OMP_WAIT_POLICY=passive build/release/bin/longspan-attention-bench [head_dim [key/value heads]]
//
// The sides take turns and the best of each counts. Seconds are processor time divided by the threads that ran, so
// what else the machine does moves it little; `wall` has the same of wall time.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "worker/trainer/attention/flash_cpu.h"

namespace longspan::trainer {
namespace {

constexpr int64_t kTokens = 4096;
constexpr int64_t kHeads = 8;
constexpr int kRounds = 9;

double Seconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Times {
  double processor = 1e30, wall = 1e30;
};

void Measure(const std::function<void()>& work, int repeats, Times* best) {
  const double wall = Seconds(CLOCK_MONOTONIC);
  const double processor = Seconds(CLOCK_PROCESS_CPUTIME_ID);
  for (int repeat = 0; repeat < repeats; ++repeat) work();
  best->processor = std::min(best->processor, (Seconds(CLOCK_PROCESS_CPUTIME_ID) - processor) / repeats);
  best->wall = std::min(best->wall, (Seconds(CLOCK_MONOTONIC) - wall) / repeats);
}

struct Side {
  const char* name;
  std::function<void()> forward, backward;
  Times forward_times{}, backward_times{};
};

struct Layer {
  FlashQueries queries;
  FlashKeys keys;
  FlashQueryGradients gradients;
  FlashKeyGradients key_gradients;
};

Layer MakeLayer(int64_t length, int64_t head_dim, int64_t key_value_heads) {
  const auto heads = [&](const at::Tensor& rows, int64_t first, int64_t count) {
    return rows.view({kTokens / length, length, rows.size(1), head_dim}).narrow(2, first, count).transpose(1, 2);
  };
  const auto fused = [&] { return at::randn({kTokens, kHeads + 2 * key_value_heads, head_dim}); };
  const at::Tensor values = fused(), gradients = fused();
  const at::Tensor out = at::randn({kTokens, kHeads, head_dim}), out_gradient = at::randn_like(out);
  return {{heads(values, 0, kHeads), heads(out, 0, kHeads), at::empty({kTokens / length, kHeads, length})},
          {heads(values, kHeads, key_value_heads), heads(values, kHeads + key_value_heads, key_value_heads), true},
          {heads(out_gradient, 0, kHeads), heads(gradients, 0, kHeads)},
          {heads(gradients, kHeads, key_value_heads), heads(gradients, kHeads + key_value_heads, key_value_heads)}};
}

Side OwnSide(const Layer& layer, FlashInstructions instructions) {
  const FlashSetting setting{at::empty({FlashWorkspaceSize(layer.queries.q.size(3), 2)}), instructions};
  return {NameOf(instructions), [=] { FlashForward(layer.queries, {layer.keys}, setting); },
          [=] { FlashBackward(layer.queries, {layer.keys}, layer.gradients, {layer.key_gradients}, setting); }};
}

// With the copies into our views, as attention.cc makes them.
Side AtenSide(const Layer& layer) {
  const auto forward = [=] {
    const auto [out, logsumexp] =
        at::_scaled_dot_product_flash_attention_for_cpu(layer.queries.q, layer.keys.k, layer.keys.v, 0.0, true);
    layer.queries.out.copy_(out);
    layer.queries.logsumexp.copy_(logsumexp);
  };
  const auto backward = [=] {
    const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        layer.gradients.out, layer.queries.q, layer.keys.k, layer.keys.v, layer.queries.out, layer.queries.logsumexp,
        0.0, true);
    layer.gradients.q.copy_(dq);
    layer.key_gradients.k.copy_(dk);
    layer.key_gradients.v.copy_(dv);
  };
  return {"ATen", forward, backward};
}

void Compare(int64_t length, int64_t head_dim, int64_t key_value_heads, int threads) {
  at::set_num_threads(threads);
  const Layer layer = MakeLayer(length, head_dim, key_value_heads);
  std::vector<Side> sides = {AtenSide(layer)};
  for (const FlashInstructions instructions : UsableFlashInstructions()) {
    sides.push_back(OwnSide(layer, instructions));
  }
  const int repeats = static_cast<int>(std::max<int64_t>(1, 2048 / length));
  for (int round = 0; round < kRounds; ++round) {
    for (Side& side : sides) {
      Measure(side.forward, repeats, &side.forward_times);
      Measure(side.backward, repeats, &side.backward_times);
    }
  }
  const double product = static_cast<double>(kTokens * length * kHeads * head_dim);  // causal: half of 2·T·length·H·D
  for (const Side& side : sides) {
    const auto total = [&](double Times::* of) { return side.forward_times.*of + side.backward_times.*of; };
    const auto gflops = [&](double products, double seconds) { return 1e-9 * products * product / seconds; };
    std::printf("%6ld  %d  %-8s %8.1f %8.1f %8.1f   %8.1f   %8.2f\n", static_cast<long>(length), threads, side.name,
                gflops(2, side.forward_times.processor / threads), gflops(5, side.backward_times.processor / threads),
                gflops(7, total(&Times::processor) / threads), gflops(7, total(&Times::wall)),
                (sides[0].forward_times.processor + sides[0].backward_times.processor) / total(&Times::processor));
  }
}

}  // namespace
}  // namespace longspan::trainer

int main(int argc, char** argv) {
  const int64_t head_dim = argc > 1 ? std::atoll(argv[1]) : 64;
  const int64_t key_value_heads = argc > 2 ? std::atoll(argv[2]) : 8;
  const c10::InferenceMode no_autograd;
  std::printf("length threads side    forward backward     both  both/wall  against ATen\n");
  for (const int threads : {1, 2}) {
    for (const int64_t length : {64, 256, 1024, 4096}) {
      longspan::trainer::Compare(length, head_dim, key_value_heads, threads);
    }
  }
}
