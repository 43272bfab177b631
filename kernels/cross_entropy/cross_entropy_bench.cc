#include <vector>

#include "kernels/bench/bench.h"
#include "kernels/cross_entropy/cross_entropy_cuda.h"

namespace longspan::kernels::bench {

// 2,048 tokens of a vocabulary of 32,000, and 512 of one of 151,936. The first reading of a row should come from
// memory, the second from the cache.
void AddCrossEntropy(Bench& bench) {
  for (const auto& [rows, vocabulary] : {std::pair<int64_t, int64_t>{2048, 32000}, {512, 151936}}) {
    const ElementType type = ElementType::kBfloat16;
    const std::vector<int64_t> targets(static_cast<size_t>(rows), 17);
    cross_entropy::Arguments arguments{type, rows, vocabulary, bench.Random(type, rows * vocabulary), vocabulary};
    arguments.targets = static_cast<const int64_t*>(bench.Upload(targets.data(), rows * 8));
    arguments.loss = static_cast<double*>(bench.Allocate(rows * 8));
    bench.Add({"cross-entropy and gradient, vocabulary " + std::to_string(vocabulary),
               2.0 * 2 * static_cast<double>(rows * vocabulary), 0,
               [=](cudaStream_t stream) { return cross_entropy::Loss(arguments, stream); }});
  }
}

}  // namespace longspan::kernels::bench
