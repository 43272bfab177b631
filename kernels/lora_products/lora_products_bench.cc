#include <algorithm>

#include "kernels/bench/bench.h"
#include "kernels/lora_products/lora_products_cuda.h"

namespace longspan::kernels::bench {

// Tiles of 1,024 and 8,192 tokens of Llama-2-7B's q, k and v, at rank 8 each, and of one of them.
void AddLoraProducts(Bench& bench) {
  constexpr int64_t kSize = 4096, kBlocks = 528;
  const ElementType type = ElementType::kBfloat16;
  for (const int64_t rows : {int64_t{1024}, int64_t{8192}}) {
    for (const int64_t ranks : {int64_t{8}, int64_t{24}}) {
      const std::string of = std::to_string(rows) + " tokens, " + std::to_string(ranks) + " ranks";
      const double bytes = 2.0 * static_cast<double>(rows) * kSize;
      const double flops = 2.0 * static_cast<double>(rows * ranks) * kSize;
      void* x = bench.Random(type, rows * kSize);
      void* inner = bench.Random(type, rows * ranks);
      lora_products::ProjectArguments project{rows,  kSize, ranks, x,    kSize, bench.Random(type, ranks * kSize),
                                              kSize, 1,     inner, ranks};
      project.parts = std::min<int64_t>(16, std::max<int64_t>(1, kBlocks / ((rows + 127) / 128)));
      project.sums = static_cast<float*>(bench.Allocate(project.parts * rows * ranks * 4));
      bench.Add({"lora: x times A, " + of, bytes, flops,
                 [=](cudaStream_t stream) { return lora_products::Project(project, stream); }});
      lora_products::OuterArguments outer{rows, ranks, kSize, inner, ranks, x, kSize};
      outer.parts = std::min<int64_t>(16, rows / 256);
      outer.sums = static_cast<float*>(bench.Allocate(outer.parts * ranks * kSize * 4));
      lora_products::AddOuterArguments add{ranks, kSize, outer.parts, outer.sums, 0, ranks, 1};
      add.gradient = static_cast<float*>(bench.Random(ElementType::kFloat32, ranks * kSize));
      add.gradient_rank_stride = kSize;
      add.gradient_column_stride = 1;
      bench.Add({"lora: gradient of A, " + of, bytes, flops, [=](cudaStream_t stream) {
                   const cudaError_t status = lora_products::Outer(outer, stream);
                   return status != cudaSuccess ? status : lora_products::AddOuter(add, stream);
                 }});
    }
  }
}

}  // namespace longspan::kernels::bench
