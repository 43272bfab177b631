// How training documents become rows: which pieces of which documents stand in each row of at most a context.
//
// Pure functions of the documents' lengths; the same on every rank and machine. Memory is 16 bytes a piece and 8 a row.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace longspan::trainer {

// Half-open range of token positions in tokens.bin.
struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const TokenRange&) const = default;
};

// joined    rows are cut from one stream of all documents, borders are not kept; the tail that fills no row is dropped
// packed    rows are filled with whole documents, which keep their borders; longer ones are cut into contexts
// records   one document is one row; nothing but its first context is read
enum class RowKind { kJoined, kPacked, kRecords };

std::string_view NameOf(RowKind kind);
std::optional<RowKind> RowKindOf(std::string_view name);

struct RowPlan {
  std::vector<TokenRange> pieces;      // of the first row, of the second, ...; none is empty
  std::vector<int64_t> row_begins{0};  // row r has the pieces [row_begins[r], row_begins[r + 1])
  int64_t dropped_tokens = 0;          // of documents, in no row

  int64_t rows() const { return static_cast<int64_t>(row_begins.size()) - 1; }
  int64_t tokens() const;  // in all rows, without padding
  int64_t RowTokens(int64_t row) const;
  // Sum of the squares of the pieces' lengths: what attention has to do for it, and how long its documents are.
  double RowWork(int64_t row) const;
};

// Best fit, longest first: a piece goes where the least space is left behind it. Documents longer than a context are
// cut into contexts and a rest; every token is in exactly one row, and nothing is dropped.
RowPlan PackDocuments(const std::vector<TokenRange>& documents, int64_t context_length);

// Row r is document r; what exceeds a context is dropped.
RowPlan OneRowPerDocument(const std::vector<TokenRange>& documents, int64_t context_length);

}  // namespace longspan::trainer
