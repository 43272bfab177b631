#include "kernels/bench/bench.h"
#include "kernels/rope/rope_cuda.h"

namespace longspan::kernels::bench {

// q and k inside the fused product of 8,192 tokens of Llama-2-7B.
void AddRope(Bench& bench) {
  constexpr int64_t kRows = 8192, kHeads = 64, kHalf = 64, kStride = 12288;
  const ElementType type = ElementType::kBfloat16;
  rope::Arguments arguments{type, kRows, kHeads, kHalf, bench.Random(type, kRows * kStride), kStride, 2 * kHalf};
  arguments.cosine = static_cast<const float*>(bench.Random(ElementType::kFloat32, kRows * kHalf));
  arguments.sine = static_cast<const float*>(bench.Random(ElementType::kFloat32, kRows * kHalf));
  arguments.table_stride = kHalf;
  arguments.tokens = kRows;
  bench.Add({"rope of q and k", 2.0 * 2 * kRows * kHeads * 2 * kHalf + 2.0 * 4 * kRows * kHalf, 0,
             [=](cudaStream_t stream) { return rope::Rotate(arguments, stream); }});
}

}  // namespace longspan::kernels::bench
