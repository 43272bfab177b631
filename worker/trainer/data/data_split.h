// What of a prepared corpus trains, in which rows, and what is held out. Pure: the prepare phase reports it, training
// and evaluation read by it, and all of them compute it anew from the documents' lengths.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/trainer/data/row_plan.h"

namespace longspan::trainer {

// Which tokens are held out: whole documents in a fixed pseudo-random order until `fraction` of the tokens (but at
// least `minimum_tokens`, where that is not more than a quarter of all) is reached; of the last one only the tail.
// Sorted, disjoint. A larger fraction holds out a superset, 1 every document whole. `offsets` has one entry per
// document and a last one for the end. Pure.
std::vector<TokenRange> ChooseHeldOut(const uint64_t* offsets, int64_t documents, double fraction,
                                      int64_t minimum_tokens, int64_t context_length);

// The same for records, of which a tail says nothing: whole documents only, the last one whole too, and below a
// fraction of 1 never all.
std::vector<TokenRange> ChooseHeldOutRecords(const uint64_t* offsets, int64_t documents, double fraction,
                                             int64_t minimum_tokens);

struct SplitOptions {
  RowKind rows = RowKind::kJoined;
  bool whole_documents = false;  // records: a part of one says nothing
  double holdout_fraction = 0;
  int64_t minimum_heldout_tokens = 0;
  int64_t context_length = 0;
};

struct DataSplit {
  std::vector<TokenRange> heldout;   // sorted, disjoint; each within one document
  std::vector<TokenRange> training;  // joined: longest ranges; else what is left of each document
  RowPlan plan;                      // of the training rows; empty for joined
  int64_t heldout_tokens = 0;
  int64_t training_tokens = 0;
  int64_t rows = 0;            // of an epoch; 0: nothing to train on
  int64_t dropped_tokens = 0;  // training tokens in no row
  int64_t padding_tokens = 0;  // joined and records: none
};

DataSplit SplitData(const uint64_t* offsets, int64_t documents, const SplitOptions& options);

// Held-out text in rows of at most `length` tokens that keep its borders: packed, or one record each. Not for joined.
RowPlan PlanHeldOut(const DataSplit& split, bool whole_documents, int64_t length);

}  // namespace longspan::trainer
