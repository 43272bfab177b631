#include "worker/trainer/model/packed_documents.h"

#include <algorithm>

namespace longspan::trainer {

PackedDocuments FindDocuments(const at::Tensor& document_ids) {
  TORCH_CHECK(document_ids.dim() == 2 && document_ids.scalar_type() == at::kLong && document_ids.numel() > 0,
              "document_ids must be (B, T) int64 with at least one token, not ", document_ids.sizes());
  const at::Tensor contiguous = document_ids.contiguous();
  const int64_t* id = contiguous.data_ptr<int64_t>();
  const int64_t rows = contiguous.numel();
  const int64_t tokens = contiguous.size(1);
  PackedDocuments documents;
  documents.positions = at::empty({rows}, at::kLong);
  auto* position = documents.positions.mutable_data_ptr<int64_t>();
  for (int64_t first = 0; first < rows;) {
    const int64_t end_of_row = (first / tokens + 1) * tokens;
    int64_t end = first;
    for (; end < end_of_row && id[end] == id[first]; ++end) position[end] = end - first;
    const int64_t length = end - first;
    if (!documents.runs.empty() && documents.runs.back().tokens == length) {
      ++documents.runs.back().documents;
    } else {
      documents.runs.push_back({first, 1, length});
    }
    documents.tokens_max = std::max(documents.tokens_max, length);
    first = end;
  }
  return documents;
}

PackedDocuments DocumentsOf(const at::Tensor& input_ids, const at::Tensor& document_ids) {
  if (document_ids.defined()) return FindDocuments(document_ids);
  return {{{0, input_ids.size(0), input_ids.size(1)}}, {}, input_ids.size(1)};
}

}  // namespace longspan::trainer
