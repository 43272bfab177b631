#include "kernels/bench/bench.h"
#include "kernels/nf4/nf4_cuda.h"

namespace longspan::kernels::bench {

// The gate and up projections of a layer of Llama-2-7B.
void AddNf4(Bench& bench) {
  constexpr int64_t kValues = int64_t{22016} * 4096;
  nf4::DequantizeArguments arguments{ElementType::kBfloat16};
  arguments.codes = static_cast<const uint8_t*>(bench.Random(ElementType::kBfloat16, kValues / 4));
  arguments.scale_codes = static_cast<const uint8_t*>(bench.Random(ElementType::kBfloat16, kValues / 128));
  arguments.scale_maxima = static_cast<const float*>(bench.Random(ElementType::kFloat32, kValues / 64 / 256));
  arguments.n = kValues;
  arguments.out = bench.Allocate(kValues * 2);
  bench.Add({"NF4 to bf16", kValues * (0.5 + 1.0 / 64 + 2), 0,
             [=](cudaStream_t stream) { return nf4::Dequantize(arguments, stream); }});
}

}  // namespace longspan::kernels::bench
