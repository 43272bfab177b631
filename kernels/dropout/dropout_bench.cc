#include "kernels/bench/bench.h"
#include "kernels/dropout/dropout_cuda.h"

namespace longspan::kernels::bench {

void AddDropout(Bench& bench) {
  constexpr int64_t kRows = 8192, kColumns = 4096;
  dropout::Arguments arguments{ElementType::kBfloat16, kRows, kColumns};
  arguments.tokens = kRows;
  arguments.threshold = 1u << 28;
  arguments.x = bench.Random(ElementType::kBfloat16, kRows * kColumns);
  arguments.out = bench.Random(ElementType::kBfloat16, kRows * kColumns);
  arguments.x_stride = arguments.out_stride = kColumns;
  bench.Add(
      {"dropout", 4.0 * kRows * kColumns, 0, [=](cudaStream_t stream) { return dropout::Apply(arguments, stream); }});
}

}  // namespace longspan::kernels::bench
