// The gradient of an embedding: table[ids[n]] += x[n] for every row n, in the order of n, so that the same inputs give
// the same bits however many rows have one id.
//
// The rows come sorted by id: `order` holds row numbers, those of one id next to each other and rising, and sorted_ids
// their ids (a stable sort of ids gives both). One group of threads adds up all rows of an id, so an id that most rows
// have is slow. fp32 sums. No workspace.
#pragma once

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels::embedding_gradient {

struct Arguments {
  ElementType type = ElementType::kFloat32;  // of x
  int64_t rows = 0, columns = 0;
  const int64_t* sorted_ids = nullptr;  // (rows), rising
  const int64_t* order = nullptr;       // (rows)
  const void* x = nullptr;              // (rows, columns), rows row_stride apart
  int64_t row_stride = 0;
  float* table = nullptr;  // (ids, columns), rows table_stride apart; added to
  int64_t table_stride = 0;
};

// On host memory.
void AddReference(const Arguments& arguments);

}  // namespace longspan::kernels::embedding_gradient
