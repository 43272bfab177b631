// Attention's calls on a GPU beside the same calls on the CPU: windows, and queries whose keys lie in two runs, as
// between ranks that share a sequence.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/attention/block_attention.h"
#include "worker/trainer/attention/sliding_window.h"
#include "worker/trainer/gpu/gpu_device.h"

namespace longspan::trainer {
namespace {

using testing::RelativeError;

class AttentionPartsGpuTest : public ::testing::Test {
 protected:
  AttentionPartsGpuTest() {
    if (gpu::Count() == 0) throw std::runtime_error("no GPU");
  }
  // (blocks, H, n, D), on the CPU.
  at::Tensor Draw(int64_t blocks, int64_t heads, int64_t n, int64_t head_dim) {
    return at::empty({blocks, heads, n, head_dim}, at::kFloat)
        .normal_(0, 1, at::detail::createCPUGenerator(static_cast<uint64_t>(++seed_)));
  }
  static at::Tensor OnGpu(const at::Tensor& values, at::ScalarType dtype) { return values.to(at::kCUDA, dtype); }

  // Within rounding in fp32; in bf16 at most twice as far from fp32 as the CPU's own bf16 is.
  static void ExpectNear(const at::Tensor& on_gpu, const at::Tensor& exact, const at::Tensor& on_cpu,
                         const std::string& what) {
    const bool bf16 = on_gpu.scalar_type() == at::kBFloat16;
    const double error = RelativeError(on_gpu.to(at::kCPU, at::kFloat), exact);
    EXPECT_LE(error, bf16 ? 2 * RelativeError(on_cpu.to(at::kFloat), exact) + 1e-3 : 1e-5) << what;
  }

 private:
  int64_t seed_ = 0;
};

TEST_F(AttentionPartsGpuTest, AWindowIsTheCpusForEveryPartOfASequence) {
  struct Part {
    int64_t ahead, queries, keys;  // of the first query before the first key
  };
  // One rank's own tokens; those of the rank before; of one far before; a text that goes on.
  const Part parts[] = {{0, 1, 1}, {0, 257, 257}, {64, 64, 64}, {130, 64, 64}, {200, 7, 207}, {700, 600, 700}};
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t key_value_heads : {4, 2}) {
      for (const Part& part : parts) {
        for (const int64_t window : {1, 2, 63, 64, 100, 2000}) {
          const at::Tensor q = Draw(2, 4, part.queries, 64), k = Draw(2, key_value_heads, part.keys, 64),
                           v = Draw(2, key_value_heads, part.keys, 64);
          const auto attend = [&](const auto& place) {
            WindowPart of;
            of.window = window;
            of.first_query = part.ahead;
            of.joins = true;
            const at::Tensor out = place(at::zeros_like(q));
            const at::Tensor sums = at::zeros({2, 4, part.queries}, out.options().dtype(at::kFloat));
            WindowPartForward(of, place(q), place(k), place(v), out, sums);
            return std::pair(out, sums);
          };
          const auto exact = attend([](const at::Tensor& values) { return values; });
          const auto on_cpu = attend([&](const at::Tensor& values) { return values.to(dtype); });
          const auto on_gpu = attend([&](const at::Tensor& values) { return OnGpu(values, dtype); });
          const std::string what = fmt::format("window {}, {} rows from {}, {} keys, {} heads of keys", window,
                                               part.queries, part.ahead, part.keys, key_value_heads);
          ExpectNear(on_gpu.first, exact.first, on_cpu.first, what);
          EXPECT_LT((on_gpu.second.to(at::kCPU) - exact.second).abs().max().item<double>(),
                    dtype == at::kFloat ? 1e-4 : 3e-2)
              << what;
        }
      }
    }
  }
}

// The halo of a rank that shares a sequence, and a block of the ring: keys before a causal block, all of them seen.
TEST_F(AttentionPartsGpuTest, TwoRunsOfKeysAreTheCpus) {
  const FlashSetting aten{{}, FlashInstructions::kNone};
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t key_value_heads : {4, 1}) {
      for (const int64_t length : {1, 2, 16, 127, 128, 200}) {
        for (const int64_t before : {1, 8, 128}) {
          const at::Tensor q = Draw(2, 4, length, 64), out_gradient = Draw(2, 4, length, 64);
          const at::Tensor rows[] = {Draw(2, key_value_heads, before, 64), Draw(2, key_value_heads, before, 64),
                                     Draw(2, key_value_heads, length, 64), Draw(2, key_value_heads, length, 64)};
          const auto attend = [&](const auto& place) {
            const at::Tensor queries = place(q), out = at::empty_like(queries);
            const at::Tensor sums = at::empty({2, 4, length}, queries.options().dtype(at::kFloat));
            const std::vector<FlashKeys> keys = {{place(rows[0]), place(rows[1]), false},
                                                 {place(rows[2]), place(rows[3]), true}};
            BlockForward({queries, out, sums}, keys, aten);
            std::vector<at::Tensor> found = {out, at::empty_like(queries)};
            std::vector<FlashKeyGradients> gradients;
            for (const FlashKeys& run : keys) {
              gradients.push_back({at::empty_like(run.k), at::empty_like(run.v)});
              found.push_back(gradients.back().k);
              found.push_back(gradients.back().v);
            }
            BlockBackward({queries, out, sums}, keys, {place(out_gradient), found[1]}, gradients, aten);
            return found;
          };
          const auto exact = attend([](const at::Tensor& values) { return values.clone(); });
          const auto on_cpu = attend([&](const at::Tensor& values) { return values.to(dtype).clone(); });
          const auto on_gpu = attend([&](const at::Tensor& values) { return OnGpu(values, dtype); });
          for (size_t i = 0; i < exact.size(); ++i) {
            ExpectNear(
                on_gpu[i], exact[i], on_cpu[i],
                fmt::format("tensor {}, length {}, {} before, {} heads of keys", i, length, before, key_value_heads));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace longspan::trainer
