// Reads prepared data (prepare.h): training rows in an order that is a pure function of (seed, step), and held-out
// windows.
//
// Rows are of one kind for a job (row_plan.h). Joined: the training stream is every document that is not held out, one
// after another; row i is its tokens [i * context_length, (i + 1) * context_length). Packed: whole documents side by
// side, with their borders. Records: one document each. An epoch visits every row once, in its own order (row_order.h).
// Nothing depends on the number of ranks: rank r of w takes rows [r * b / w, (r + 1) * b / w) of the global batch.
//
// Held-out text is measured as training reads it: joined documents in windows of one stream, others in rows that keep
// their borders, so that a document longer than the window is several and a shorter one is scored in its own length.
// The paper's protocol, windows every so many tokens, knows streams only.
//
// Files are memory-mapped and never written. Immutable and thread-safe after Open. Throws UserError (the folder is
// missing or damaged, the split leaves less than one row).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "worker/trainer/data/data_split.h"
#include "worker/trainer/data/row_order.h"
#include "worker/trainer/data/row_plan.h"

namespace longspan::trainer {

inline constexpr int64_t kUnscoredLabel = -100;

struct BatchSlice {
  int64_t begin = 0;  // row of the global batch
  int64_t end = 0;
};
// Rows of rank `rank` of `world_size`; slices differ by at most one row when the batch does not divide.
BatchSlice SliceOfRank(int64_t global_batch, int64_t rank, int64_t world_size);
// Sequences of the rank that has most.
int64_t LargestSlice(int64_t global_batch, int64_t world_size);

// What a model trains on or is measured by: `rows` rows of `tokens` tokens, row-major. Rows that are shorter than the
// longest end in padding, which is a document of its own and never scored.
struct Rows {
  int64_t rows = 0;
  int64_t tokens = 0;
  std::vector<int64_t> input_ids;     // padding: an id that the model has
  std::vector<int64_t> labels;        // the id itself, or kUnscoredLabel; not yet shifted
  std::vector<int64_t> document_ids;  // a new document starts where the value changes; empty: each row is one
  std::vector<int64_t> lengths;       // of each row, without padding
};

class Dataset {
  struct Impl;

 public:
  // Opens what <work>/dataset.json names, with the split written there.
  static Dataset Open(const std::filesystem::path& work);
  ~Dataset();
  Dataset(Dataset&&) noexcept;

  const std::string& key() const;
  RowKind row_kind() const;
  int64_t context_length() const;
  int64_t training_sequences() const;  // rows per epoch; at least 1
  int64_t training_tokens() const;
  int64_t heldout_tokens() const;
  int64_t vocab_size() const;  // largest id in the data plus one

  // Ids of the global batch of a step, one per row. `step` counts from 0 (the number of steps whose data was consumed
  // before).
  std::vector<int64_t> SequenceIds(uint64_t seed, int64_t step, int64_t global_batch) const;
  // Rows 0 <= id < training_sequences(), as wide as the longest of them; joined rows have context_length tokens.
  Rows ReadRows(const std::vector<int64_t>& ids) const;
  // Lengths of the documents in a row, without padding; of a joined row, which is one sequence, its length.
  std::vector<int64_t> DocumentLengths(int64_t id) const;
  // Tokens of a row without padding or labels.
  std::vector<int64_t> Sequence(int64_t id) const;

  // Held-out text in rows of at most `length` tokens that do not overlap: joined windows of exactly `length`, whose
  // tail shorter than a window is left out, or rows with borders.
  class HeldOut {
   public:
    int64_t count() const;
    Rows Read(int64_t first, int64_t count) const;

   private:
    friend class Dataset;
    const Impl* data_ = nullptr;
    int64_t length_ = 0;
    RowPlan plan_;  // not for joined
  };
  // The dataset outlives it, and may move.
  HeldOut HeldOutRows(int64_t length) const;

  // The held-out stream in windows, whatever the kind of the rows.
  int64_t HeldOutWindows(int64_t length) const;
  std::vector<int64_t> HeldOutWindow(int64_t length, int64_t index) const;
  // Tokens [begin, begin + count) of the held-out stream, for protocols with overlapping windows.
  std::vector<int64_t> HeldOutTokens(int64_t begin, int64_t count) const;

 private:
  explicit Dataset(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace longspan::trainer
