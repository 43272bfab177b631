// Runs a loop over rows on LibTorch's threads. A unit of its own because at::parallel_for is serial where OpenMP is not
// switched on, and units with OpenMP cannot use the precompiled headers.
#pragma once

#include <cstdint>
#include <functional>

namespace longspan::trainer {

// body(begin, end) for ranges that cover [0, rows); at least `grain` rows each, so small loops stay on the calling
// thread.
void ForRowRanges(int64_t rows, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body);

}  // namespace longspan::trainer
