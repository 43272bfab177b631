// Kernels beside what the device can do: bytes a second against a copy of memory, FLOP a second against nothing (the
// reader knows the chip). longspan-kernel-bench runs every case and prints a table, or JSON with --json.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/common/element_type.h"

namespace longspan::kernels::bench {

struct Case {
  std::string name;
  double bytes = 0;  // read and written by one run
  double flops = 0;  // of one run; 0: not told
  std::function<cudaError_t(cudaStream_t stream)> run;
};

class Bench {
 public:
  ~Bench();
  void Add(Case one) { cases_.push_back(std::move(one)); }
  const std::vector<Case>& cases() const { return cases_; }

  // Device memory until the end. Random: values in [-1, 1), the same in every process. Throw std::runtime_error.
  void* Allocate(int64_t bytes);
  void* Random(ElementType type, int64_t elements);
  // Copies from host memory.
  void* Upload(const void* from, int64_t bytes);

 private:
  std::vector<Case> cases_;
  std::vector<void*> memory_;
};

// One for each folder of kernels, in its *_bench.cc.
void AddAdamw(Bench& bench);
void AddCrossEntropy(Bench& bench);
void AddDropout(Bench& bench);
void AddEmbeddingGradient(Bench& bench);
void AddFp8Rows(Bench& bench);
void AddLoraProducts(Bench& bench);
void AddNf4(Bench& bench);
void AddNorm(Bench& bench);
void AddNormal(Bench& bench);
void AddRope(Bench& bench);
void AddSwiglu(Bench& bench);
void AddTensorSums(Bench& bench);

}  // namespace longspan::kernels::bench
