#include "worker/trainer/data/data_split.h"

#include <algorithm>
#include <cmath>

#include "worker/trainer/data/mix.h"

namespace longspan::trainer {
namespace {

// Documents in the order in which they are held out: by a hash of their number.
std::vector<int64_t> HoldOutOrder(int64_t documents) {
  std::vector<int64_t> order(static_cast<size_t>(documents));
  for (int64_t i = 0; i < documents; ++i) order[static_cast<size_t>(i)] = i;
  std::sort(order.begin(), order.end(), [](int64_t a, int64_t b) {
    return Mix(static_cast<uint64_t>(a)) < Mix(static_cast<uint64_t>(b));  // Mix is a bijection: no ties.
  });
  return order;
}

int64_t WantedTokens(int64_t total, double fraction, int64_t minimum_tokens) {
  return std::max(static_cast<int64_t>(std::floor(static_cast<double>(total) * fraction)),
                  std::min(minimum_tokens, total / 4));
}

void SortByPlace(std::vector<TokenRange>* ranges) {
  std::sort(ranges->begin(), ranges->end(), [](const TokenRange& a, const TokenRange& b) { return a.begin < b.begin; });
}

// What sorted, disjoint ranges leave of [0, end).
std::vector<TokenRange> Complement(const std::vector<TokenRange>& ranges, int64_t end) {
  std::vector<TokenRange> result;
  int64_t done = 0;
  for (const TokenRange& range : ranges) {
    if (range.begin > done) result.push_back({done, range.begin});
    done = range.end;
  }
  if (end > done) result.push_back({done, end});
  return result;
}

// What of each document is not held out. A held-out range lies within one document and reaches to its end.
std::vector<TokenRange> TrainingDocuments(const uint64_t* offsets, int64_t documents,
                                          const std::vector<TokenRange>& heldout) {
  std::vector<TokenRange> training;
  auto next = heldout.begin();
  for (int64_t document = 0; document < documents; ++document) {
    TokenRange range{static_cast<int64_t>(offsets[document]), static_cast<int64_t>(offsets[document + 1])};
    if (next != heldout.end() && next->begin < range.end) {
      range.end = next->begin;
      ++next;
    }
    if (range.size() > 0) training.push_back(range);
  }
  return training;
}

// Each a range of its own: who keeps borders must find them.
std::vector<TokenRange> EveryDocument(const uint64_t* offsets, int64_t documents) {
  std::vector<TokenRange> ranges;
  for (int64_t document = 0; document < documents; ++document) {
    const TokenRange range{static_cast<int64_t>(offsets[document]), static_cast<int64_t>(offsets[document + 1])};
    if (range.size() > 0) ranges.push_back(range);
  }
  return ranges;
}

int64_t TokensOf(const std::vector<TokenRange>& ranges) {
  int64_t tokens = 0;
  for (const TokenRange& range : ranges) tokens += range.size();
  return tokens;
}

}  // namespace

std::vector<TokenRange> ChooseHeldOut(const uint64_t* offsets, int64_t documents, double fraction,
                                      int64_t minimum_tokens, int64_t context_length) {
  const auto total = static_cast<int64_t>(offsets[documents]);
  if (fraction <= 0) return {};
  if (fraction >= 1) return EveryDocument(offsets, documents);
  int64_t wanted = std::min(WantedTokens(total, fraction, minimum_tokens), total - context_length);
  std::vector<TokenRange> ranges;
  for (const int64_t document : HoldOutOrder(documents)) {
    if (wanted <= 0) break;
    const auto begin = static_cast<int64_t>(offsets[document]);
    const auto end = static_cast<int64_t>(offsets[document + 1]);
    const int64_t taken = std::min(wanted, end - begin);
    if (taken > 0) ranges.push_back({end - taken, end});
    wanted -= taken;
  }
  SortByPlace(&ranges);
  return ranges;
}

std::vector<TokenRange> ChooseHeldOutRecords(const uint64_t* offsets, int64_t documents, double fraction,
                                             int64_t minimum_tokens) {
  if (fraction <= 0 || documents == 0) return {};
  if (fraction >= 1) return EveryDocument(offsets, documents);
  int64_t wanted = WantedTokens(static_cast<int64_t>(offsets[documents]), fraction, minimum_tokens);
  std::vector<TokenRange> ranges;
  std::vector<int64_t> order = HoldOutOrder(documents);
  order.pop_back();  // one record trains
  for (const int64_t document : order) {
    if (wanted <= 0) break;
    const TokenRange range{static_cast<int64_t>(offsets[document]), static_cast<int64_t>(offsets[document + 1])};
    if (range.size() > 0) ranges.push_back(range);
    wanted -= range.size();
  }
  SortByPlace(&ranges);
  return ranges;
}

DataSplit SplitData(const uint64_t* offsets, int64_t documents, const SplitOptions& options) {
  DataSplit split;
  split.heldout = options.whole_documents ? ChooseHeldOutRecords(offsets, documents, options.holdout_fraction,
                                                                 options.minimum_heldout_tokens)
                                          : ChooseHeldOut(offsets, documents, options.holdout_fraction,
                                                          options.minimum_heldout_tokens, options.context_length);
  split.heldout_tokens = TokensOf(split.heldout);
  if (options.rows == RowKind::kJoined) {
    split.training = Complement(split.heldout, static_cast<int64_t>(offsets[documents]));
    split.training_tokens = TokensOf(split.training);
    split.rows = split.training_tokens / options.context_length;
    split.dropped_tokens = split.training_tokens % options.context_length;
    return split;
  }
  split.training = TrainingDocuments(offsets, documents, split.heldout);
  split.training_tokens = TokensOf(split.training);
  if (options.rows == RowKind::kPacked) {
    split.plan = PackDocuments(split.training, options.context_length);
    split.padding_tokens = split.plan.rows() * options.context_length - split.training_tokens;
  } else {
    split.plan = OneRowPerDocument(split.training, options.context_length);
  }
  split.rows = split.plan.rows();
  split.dropped_tokens = split.plan.dropped_tokens;
  return split;
}

RowPlan PlanHeldOut(const DataSplit& split, bool whole_documents, int64_t length) {
  return whole_documents ? OneRowPerDocument(split.heldout, length) : PackDocuments(split.heldout, length);
}

}  // namespace longspan::trainer
