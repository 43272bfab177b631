// The documents that a batch is packed from: where each starts and ends, and the position of each token in its own.
//
// Within a row, a new document starts where the id changes; a row is always a border. An id that comes back later in a
// row is another document. Padding at the end of a row is one more document, of labels that are never scored: it moves
// nothing, exactly.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "worker/trainer/attention/attention.h"

namespace longspan::trainer {

struct PackedDocuments {
  std::vector<DocumentRun> runs;  // all rows, in order; equal neighbours in one run
  at::Tensor positions;           // (B·T) int64, from 0 in each document
  int64_t tokens_max = 0;         // of the longest document
};

// document_ids (B, T) int64. Throws c10::Error on another shape or type.
PackedDocuments FindDocuments(const at::Tensor& document_ids);
// Where document_ids is undefined: each row of input_ids is one; no positions, which are those of the rows.
PackedDocuments DocumentsOf(const at::Tensor& input_ids, const at::Tensor& document_ids);

}  // namespace longspan::trainer
