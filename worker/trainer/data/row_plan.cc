#include "worker/trainer/data/row_plan.h"

#include <algorithm>
#include <map>

#include "proto/support/check.h"

namespace longspan::trainer {
namespace {

constexpr std::pair<RowKind, std::string_view> kNames[] = {
    {RowKind::kJoined, "joined"}, {RowKind::kPacked, "packed"}, {RowKind::kRecords, "records"}};

std::vector<TokenRange> CutIntoContexts(const std::vector<TokenRange>& documents, int64_t context_length) {
  std::vector<TokenRange> pieces;
  pieces.reserve(documents.size());
  for (const TokenRange& document : documents) {
    for (int64_t begin = document.begin; begin < document.end; begin += context_length) {
      pieces.push_back({begin, std::min(begin + context_length, document.end)});
    }
  }
  return pieces;
}

// The row of each piece, rows counted from 0. Pieces come longest first.
std::vector<int64_t> BestFit(const std::vector<TokenRange>& pieces, int64_t context_length) {
  std::vector<int64_t> row_of;
  row_of.reserve(pieces.size());
  std::map<int64_t, std::vector<int64_t>> rows_by_space;  // rows that are not full; of equal ones the latest is taken
  int64_t rows = 0;
  for (const TokenRange& piece : pieces) {
    int64_t row = rows;
    int64_t space = context_length;
    const auto found = rows_by_space.lower_bound(piece.size());
    if (found == rows_by_space.end()) {
      ++rows;
    } else {
      space = found->first;
      row = found->second.back();
      found->second.pop_back();
      if (found->second.empty()) rows_by_space.erase(found);
    }
    row_of.push_back(row);
    if (space > piece.size()) rows_by_space[space - piece.size()].push_back(row);
  }
  return row_of;
}

}  // namespace

std::string_view NameOf(RowKind kind) {
  for (const auto& [candidate, name] : kNames) {
    if (candidate == kind) return name;
  }
  return "?";
}

std::optional<RowKind> RowKindOf(std::string_view name) {
  for (const auto& [kind, candidate] : kNames) {
    if (candidate == name) return kind;
  }
  return std::nullopt;
}

int64_t RowPlan::tokens() const {
  int64_t tokens = 0;
  for (const TokenRange& piece : pieces) tokens += piece.size();
  return tokens;
}

int64_t RowPlan::RowTokens(int64_t row) const {
  int64_t tokens = 0;
  for (int64_t piece = row_begins[static_cast<size_t>(row)]; piece < row_begins[static_cast<size_t>(row) + 1];
       ++piece) {
    tokens += pieces[static_cast<size_t>(piece)].size();
  }
  return tokens;
}

double RowPlan::RowWork(int64_t row) const {
  double work = 0;
  for (int64_t piece = row_begins[static_cast<size_t>(row)]; piece < row_begins[static_cast<size_t>(row) + 1];
       ++piece) {
    const auto length = static_cast<double>(pieces[static_cast<size_t>(piece)].size());
    work += length * length;
  }
  return work;
}

RowPlan PackDocuments(const std::vector<TokenRange>& documents, int64_t context_length) {
  CHECK(context_length > 0);
  std::vector<TokenRange> pieces = CutIntoContexts(documents, context_length);
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const TokenRange& a, const TokenRange& b) { return a.size() > b.size(); });
  const std::vector<int64_t> row_of = BestFit(pieces, context_length);
  // Counting sort by row: pieces of a row stay longest first.
  RowPlan plan;
  const int64_t rows = row_of.empty() ? 0 : *std::max_element(row_of.begin(), row_of.end()) + 1;
  plan.row_begins.assign(static_cast<size_t>(rows) + 1, 0);
  for (const int64_t row : row_of) ++plan.row_begins[static_cast<size_t>(row) + 1];
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row) plan.row_begins[row + 1] += plan.row_begins[row];
  std::vector<int64_t> next(plan.row_begins.begin(), plan.row_begins.end() - 1);
  plan.pieces.resize(pieces.size());
  for (size_t piece = 0; piece < pieces.size(); ++piece) {
    plan.pieces[static_cast<size_t>(next[static_cast<size_t>(row_of[piece])]++)] = pieces[piece];
  }
  return plan;
}

RowPlan OneRowPerDocument(const std::vector<TokenRange>& documents, int64_t context_length) {
  CHECK(context_length > 0);
  RowPlan plan;
  for (const TokenRange& document : documents) {
    const int64_t kept = std::min(document.size(), context_length);
    plan.dropped_tokens += document.size() - kept;
    if (kept == 0) continue;
    plan.pieces.push_back({document.begin, document.begin + kept});
    plan.row_begins.push_back(static_cast<int64_t>(plan.pieces.size()));
  }
  return plan;
}

}  // namespace longspan::trainer
