#include "worker/trainer/row_batch.h"

#include <algorithm>

namespace longspan::trainer {
namespace {

// (count, width) of the row-major values.
at::Tensor Cut(const Rows& rows, const std::vector<int64_t>& values, int64_t first, int64_t count, int64_t width) {
  at::Tensor out = at::empty({count, width}, at::kLong);
  auto* to = out.mutable_data_ptr<int64_t>();
  for (int64_t row = 0; row < count; ++row) {
    std::copy_n(values.begin() + (first + row) * rows.tokens, width, to + row * width);
  }
  return out;
}

}  // namespace

Batch BatchOf(const Rows& rows, int64_t first, int64_t count) {
  TORCH_CHECK(first >= 0 && count >= 1 && first + count <= rows.rows, "rows ", first, " to ", first + count, " of ",
              rows.rows);
  const int64_t width = *std::max_element(rows.lengths.begin() + first, rows.lengths.begin() + first + count);
  Batch batch;
  batch.input_ids = Cut(rows, rows.input_ids, first, count, width);
  batch.labels = Cut(rows, rows.labels, first, count, width);
  if (!rows.document_ids.empty()) batch.document_ids = Cut(rows, rows.document_ids, first, count, width);
  return batch;
}

}  // namespace longspan::trainer
