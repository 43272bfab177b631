#include "kernels/bench/bench.h"
#include "kernels/tensor_sums/tensor_sums_cuda.h"

namespace longspan::kernels::bench {

void AddTensorSums(Bench& bench) {
  constexpr int64_t kRows = 8192, kColumns = 4096, kParts = 264;
  const ElementType type = ElementType::kBfloat16;
  tensor_sums::ColumnSumsArguments columns{type,     kRows, kColumns, bench.Random(type, kRows * kColumns),
                                           kColumns, kParts};
  columns.work = static_cast<float*>(bench.Allocate(kParts * kColumns * 4));
  columns.sum = static_cast<float*>(bench.Random(ElementType::kFloat32, kColumns));
  bench.Add({"sums of columns", 2.0 * kRows * kColumns, 0,
             [=](cudaStream_t stream) { return tensor_sums::ColumnSums(columns, stream); }});
  tensor_sums::AddScaledArguments scaled{type, kColumns, kRows, columns.x, 1, kColumns};
  scaled.sum = static_cast<float*>(bench.Random(ElementType::kFloat32, kRows * kColumns));
  scaled.sum_row_stride = kRows;
  bench.Add({"bf16 transposed, added to fp32", 10.0 * kRows * kColumns, 0,
             [=](cudaStream_t stream) { return tensor_sums::AddScaled(scaled, stream); }});
  const tensor_sums::Span span{scaled.sum, kRows * kColumns};
  const auto* spans = static_cast<const tensor_sums::Span*>(bench.Upload(&span, sizeof(span)));
  auto* work = static_cast<double*>(bench.Allocate(tensor_sums::kNormParts * 8));
  auto* result = static_cast<double*>(bench.Allocate(8));
  bench.Add({"squared norm", 4.0 * kRows * kColumns, 0,
             [=](cudaStream_t stream) { return tensor_sums::SquaredNorm(spans, 1, work, result, stream); }});
}

}  // namespace longspan::kernels::bench
