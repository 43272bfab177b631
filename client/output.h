// Results for people (tables) and for scripts (a stable envelope in JSON or YAML).
#pragma once

#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

namespace longspan::client {

enum class OutputFormat { kTable, kJson, kYaml };

// {"kind": KIND, "items": [...]}: what scripts get, whatever the command. Later versions only add keys to items.
void PrintEnvelope(std::ostream& out, OutputFormat format, const std::string& kind, nlohmann::ordered_json items);

// Columns as wide as their cells; the last one may be cut to the terminal's width (0: never).
class Table {
 public:
  // A heading that starts with '>' is aligned to the right.
  explicit Table(std::vector<std::string> headings);
  void Add(std::vector<std::string> cells);
  void Print(std::ostream& out, int width) const;
  bool empty() const { return rows_.empty(); }

 private:
  std::vector<std::string> headings_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

// Columns that a UTF-8 text takes: its characters, one each.
size_t ColumnsOf(const std::string& text);
// At most so many columns, the rest cut away with "...". Control characters and turns of the writing direction, which a
// job's texts may hold, become '?'.
std::string Shortened(const std::string& text, size_t columns);
std::string WithoutControls(const std::string& text);
// Pieces of so many columns, at least 1, the last one shorter; one empty piece of an empty text.
std::vector<std::string> Folded(const std::string& text, size_t columns);
// The same, broken at spaces where a word is not longer than a line.
std::vector<std::string> FoldedAtWords(const std::string& text, size_t columns);

// 1536 -> "1.5 KiB", 12345678 -> "12,345,678", 3725 s -> "1h02m", 0.004 -> "0.004".
std::string BytesText(int64_t bytes);
std::string CountText(int64_t count);
std::string DurationText(double seconds);

}  // namespace longspan::client
