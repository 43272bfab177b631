#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/bench/bench.h"
#include "kernels/embedding_gradient/embedding_gradient_cuda.h"

namespace longspan::kernels::bench {

// 8,192 tokens whose ids are as uneven as words are: the r-th most frequent has a share of 1/r.
void AddEmbeddingGradient(Bench& bench) {
  constexpr int64_t kRows = 8192, kColumns = 4096, kIds = 32000;
  std::mt19937 generator(3);
  std::uniform_real_distribution<double> uniform(0, std::log(static_cast<double>(kIds)));
  std::vector<int64_t> ids(kRows), order(kRows), sorted(kRows);
  for (int64_t& id : ids) id = std::min<int64_t>(kIds - 1, static_cast<int64_t>(std::exp(uniform(generator))));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
  for (int64_t at = 0; at < kRows; ++at) sorted[at] = ids[order[at]];
  embedding_gradient::Arguments arguments{ElementType::kBfloat16, kRows, kColumns};
  arguments.sorted_ids = static_cast<const int64_t*>(bench.Upload(sorted.data(), kRows * 8));
  arguments.order = static_cast<const int64_t*>(bench.Upload(order.data(), kRows * 8));
  arguments.x = bench.Random(ElementType::kBfloat16, kRows * kColumns);
  arguments.row_stride = arguments.table_stride = kColumns;
  arguments.table = static_cast<float*>(bench.Random(ElementType::kFloat32, kIds * kColumns));
  const auto rows_written = static_cast<double>(std::unique(sorted.begin(), sorted.end()) - sorted.begin());
  bench.Add({"embedding gradient", 2.0 * kRows * kColumns + 8 * rows_written * kColumns, 0,
             [=](cudaStream_t stream) { return embedding_gradient::Add(arguments, stream); }});
}

}  // namespace longspan::kernels::bench
