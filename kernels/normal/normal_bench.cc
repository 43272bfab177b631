#include "kernels/bench/bench.h"
#include "kernels/normal/normal_cuda.h"

namespace longspan::kernels::bench {

void AddNormal(Bench& bench) {
  constexpr int64_t kElements = int64_t{8192} * 4096;
  normal::Arguments arguments;
  arguments.type = ElementType::kBfloat16;
  arguments.key = 7;
  arguments.elements = kElements;
  arguments.deviation = 0.02;
  arguments.out = bench.Random(ElementType::kBfloat16, kElements);
  bench.Add({"normal", 2.0 * kElements, 0, [=](cudaStream_t stream) { return normal::Draw(arguments, stream); }});
}

}  // namespace longspan::kernels::bench
