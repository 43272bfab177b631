#include "kernels/bench/bench.h"
#include "kernels/swiglu/swiglu_cuda.h"

namespace longspan::kernels::bench {

// A tile of 8,192 tokens of Llama-2-7B.
void AddSwiglu(Bench& bench) {
  constexpr int64_t kRows = 8192, kSize = 11008;
  const ElementType type = ElementType::kBfloat16;
  void* gate_up = bench.Random(type, kRows * 2 * kSize);
  void* out = bench.Random(type, kRows * kSize);
  const double bytes = 2.0 * kRows * kSize;
  bench.Add({"swiglu forward", 3 * bytes, 0, [=](cudaStream_t stream) {
               return swiglu::Forward({type, kRows, kSize, gate_up, 2 * kSize, out, kSize}, stream);
             }});
  bench.Add({"swiglu backward, in place", 5 * bytes, 0, [=](cudaStream_t stream) {
               return swiglu::Backward({type, kRows, kSize, gate_up, 2 * kSize, out, kSize, gate_up, 2 * kSize},
                                       stream);
             }});
}

}  // namespace longspan::kernels::bench
