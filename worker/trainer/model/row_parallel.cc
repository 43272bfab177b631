#include "worker/trainer/model/row_parallel.h"

#include <ATen/Parallel.h>

#ifndef _OPENMP
#error "compile with -fopenmp, or the loops are serial"
#endif

namespace longspan::trainer {

void ForRowRanges(int64_t rows, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body) {
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) { body(begin, end); });
}

}  // namespace longspan::trainer
