#include "kernels/bench/bench.h"
#include "kernels/norm/norm_cuda.h"

namespace longspan::kernels::bench {

// 8,192 tokens of Llama-2-7B, and the heads of Qwen3-8B's q and k.
void AddNorm(Bench& bench) {
  constexpr int64_t kRows = 8192, kSize = 4096, kParts = 528;
  const ElementType type = ElementType::kBfloat16;
  const norm::View x{bench.Random(type, kRows * kSize), kSize, kSize};
  const norm::View y{bench.Random(type, kRows * kSize), kSize, kSize};
  const norm::View z{bench.Random(type, kRows * kSize), kSize, kSize};
  void* weight = bench.Random(type, kSize);
  auto* statistics = static_cast<float*>(bench.Random(ElementType::kFloat32, kRows * 40));
  auto* sums = static_cast<float*>(bench.Random(ElementType::kFloat32, kParts * kSize));
  auto* gradient = static_cast<float*>(bench.Random(ElementType::kFloat32, kSize));
  const double bytes = 2.0 * kRows * kSize;
  bench.Add({"rms norm forward", 2 * bytes, 0, [=](cudaStream_t stream) {
               return norm::Forward(
                   {type, norm::Kind::kRms, {kRows, 1, kSize}, x, {}, weight, nullptr, 1e-5f, y, statistics, 1},
                   stream);
             }});
  bench.Add({"rms norm forward, residual added", 4 * bytes, 0, [=](cudaStream_t stream) {
               return norm::Forward(
                   {type, norm::Kind::kRms, {kRows, 1, kSize}, x, z, weight, nullptr, 1e-5f, y, statistics, 1}, stream);
             }});
  bench.Add(
      {"rms norm backward, weight trains", 4 * bytes, 0, [=](cudaStream_t stream) {
         return norm::Backward(
             {type, norm::Kind::kRms, {kRows, 1, kSize}, x, weight, statistics, 1, y, z, true, kParts, sums, gradient},
             stream);
       }});
  bench.Add({"rms norm backward, weight frozen", 4 * bytes, 0, [=](cudaStream_t stream) {
               return norm::Backward({type, norm::Kind::kRms, {kRows, 1, kSize}, x, weight, statistics, 1, y, z, true},
                                     stream);
             }});
  const norm::View heads{x.data, 6144, 128}, out{y.data, 5120, 128};
  constexpr int64_t kTokens = 4096, kHeads = 40;
  bench.Add({"rms norm of 40 heads", 2.0 * 2 * kTokens * kHeads * 128, 0, [=](cudaStream_t stream) {
               return norm::Forward({type,
                                     norm::Kind::kRms,
                                     {kTokens, kHeads, 128},
                                     heads,
                                     {},
                                     weight,
                                     nullptr,
                                     1e-6f,
                                     out,
                                     statistics,
                                     kHeads},
                                    stream);
             }});
}

}  // namespace longspan::kernels::bench
