#include "kernels/adamw/adamw_cuda.h"
#include "kernels/bench/bench.h"

namespace longspan::kernels::bench {

// LoRA's 256 small tensors, and the embedding of Llama-2-7B.
void AddAdamw(Bench& bench) {
  constexpr int64_t kSmall = 256, kSmallSize = 8 * 4096, kLargeSize = int64_t{32000} * 4096;
  const ElementType type = ElementType::kBfloat16;
  const auto list = [&](int64_t count, int64_t size) {
    std::vector<adamw::Tensor> tensors;
    for (int64_t i = 0; i < count; ++i) {
      const auto values = [&] { return static_cast<float*>(bench.Random(ElementType::kFloat32, size)); };
      // Squares are not negative: moments of zero.
      auto* second = static_cast<float*>(bench.Allocate(size * 4));
      cudaMemset(second, 0, static_cast<size_t>(size * 4));
      tensors.push_back({size, values(), values(), values(), second, bench.Random(type, size)});
    }
    return static_cast<const adamw::Tensor*>(
        bench.Upload(tensors.data(), static_cast<int64_t>(tensors.size() * sizeof(adamw::Tensor))));
  };
  const auto* small = list(kSmall, kSmallSize);
  const auto* large = list(1, kLargeSize);
  const adamw::Update update{type, 1e-4};
  constexpr double kBytes = 4 * 7 + 2;  // four read, three written, and the bf16 value
  bench.Add({"AdamW of 256 tensors of 32,768", kBytes * kSmall * kSmallSize, 0,
             [=](cudaStream_t stream) { return adamw::Step(update, small, kSmall, kSmallSize, stream); }});
  bench.Add({"AdamW of one of 131 million", kBytes * kLargeSize, 0,
             [=](cudaStream_t stream) { return adamw::Step(update, large, 1, kLargeSize, stream); }});
}

}  // namespace longspan::kernels::bench
