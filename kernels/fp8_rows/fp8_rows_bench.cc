#include "kernels/bench/bench.h"
#include "kernels/fp8_rows/fp8_rows_cuda.h"

namespace longspan::kernels::bench {

// 8,192 tokens of Llama-2-7B: a layer's input, and the gradient of gate and up.
void AddFp8Rows(Bench& bench) {
  constexpr int64_t kRows = 8192;
  for (const int64_t columns : {int64_t{4096}, int64_t{22016}}) {
    fp8_rows::QuantizeArguments arguments{ElementType::kBfloat16, kRows, columns};
    arguments.x = bench.Random(ElementType::kBfloat16, kRows * columns);
    arguments.codes = static_cast<uint8_t*>(bench.Allocate(kRows * columns));
    arguments.scales = static_cast<float*>(bench.Allocate(kRows * 4));
    arguments.x_stride = arguments.codes_stride = columns;
    bench.Add({"8-bit rows of " + std::to_string(columns), 3.0 * kRows * static_cast<double>(columns), 0,
               [=](cudaStream_t stream) { return fp8_rows::Quantize(arguments, stream); }});
  }
}

}  // namespace longspan::kernels::bench
