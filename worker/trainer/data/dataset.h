// Reads prepared data (prepare.h): training sequences in an order that is a pure function of (seed, step), and held-out
// windows.
//
// The training stream is every document that is not held out, one after another; sequence i of an epoch is its tokens
// [i * context_length, (i + 1) * context_length). Each epoch visits every sequence once, in its own order. Nothing
// depends on the number of ranks: rank r of w takes rows [r * b / w, (r + 1) * b / w) of the global batch.
//
// Files are memory-mapped and never written. Immutable and thread-safe after Open. Throws UserError (the folder is
// missing or damaged, the split leaves less than one context).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace longspan::trainer {

// Half-open range of token positions in tokens.bin.
struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const TokenRange&) const = default;
};

// Which tokens are held out: whole documents in a fixed pseudo-random order until `fraction` of the tokens (but at
// least `minimum_tokens`, where that is not more than a quarter of all) is reached; of the last one only the tail.
// Sorted, disjoint. A larger fraction holds out a superset. `offsets` has one entry per document and a last one for the
// end. Pure.
std::vector<TokenRange> ChooseHeldOut(const uint64_t* offsets, int64_t documents, double fraction,
                                      int64_t minimum_tokens, int64_t context_length);

// Position `index` of a pseudo-random order of [0, count) that `key` names: a bijection, computed without a table.
// Pure, the same on every machine. Requires 0 <= index < count.
int64_t Permute(int64_t index, int64_t count, uint64_t key);

struct BatchSlice {
  int64_t begin = 0;  // row of the global batch
  int64_t end = 0;
};
// Rows of rank `rank` of `world_size`; slices differ by at most one row when the batch does not divide.
BatchSlice SliceOfRank(int64_t global_batch, int64_t rank, int64_t world_size);

class Dataset {
 public:
  // Opens what <work>/dataset.json names, with the split written there.
  static Dataset Open(const std::filesystem::path& work);
  ~Dataset();
  Dataset(Dataset&&) noexcept;

  const std::string& key() const;
  int64_t context_length() const;
  int64_t training_sequences() const;  // per epoch; at least 1
  int64_t training_tokens() const;
  int64_t heldout_tokens() const;
  int64_t vocab_size() const;  // largest id in the data plus one

  // Ids of the global batch of a step, one per row. `step` counts from 0 (the number of steps whose data was consumed
  // before).
  std::vector<int64_t> SequenceIds(uint64_t seed, int64_t step, int64_t global_batch) const;
  // Fills context_length tokens of sequence `id`, 0 <= id < training_sequences().
  void Sequence(int64_t id, int64_t* tokens) const;
  std::vector<int64_t> Sequence(int64_t id) const;

  // Held-out text in windows of `length` tokens that do not overlap, from its start; the tail shorter than a window is
  // left out.
  int64_t HeldOutWindows(int64_t length) const;
  std::vector<int64_t> HeldOutWindow(int64_t length, int64_t index) const;
  // Tokens [begin, begin + count) of the held-out stream, for protocols with overlapping windows.
  std::vector<int64_t> HeldOutTokens(int64_t begin, int64_t count) const;

 private:
  struct Impl;
  explicit Dataset(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace longspan::trainer
