#include "client/output.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>

namespace longspan::client {
namespace {

using nlohmann::ordered_json;

void Emit(YAML::Emitter& emitter, const ordered_json& value) {
  if (value.is_object()) {
    emitter << YAML::BeginMap;
    for (const auto& [key, entry] : value.items()) {
      emitter << YAML::Key << key << YAML::Value;
      Emit(emitter, entry);
    }
    emitter << YAML::EndMap;
  } else if (value.is_array()) {
    emitter << YAML::BeginSeq;
    for (const auto& entry : value) Emit(emitter, entry);
    emitter << YAML::EndSeq;
  } else if (value.is_string()) {
    // Quoted, so that a text such as "no" or "1e3" stays a text.
    emitter << YAML::DoubleQuoted << value.get<std::string>();
  } else {
    emitter << value.dump();
  }
}

// Bytes of a character that acts on a terminal: C0 and DEL (1), C1 (2), turns of the writing direction (3); else 0.
size_t ControlBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  if (byte(0) < 0x20 || byte(0) == 0x7f) return 1;
  if (byte(0) == 0xc2 && byte(1) >= 0x80 && byte(1) < 0xa0) return 2;
  const bool turns = byte(0) == 0xe2 && ((byte(1) == 0x80 && byte(2) >= 0xaa && byte(2) <= 0xae) ||
                                         (byte(1) == 0x81 && byte(2) >= 0xa6 && byte(2) <= 0xa9));
  return turns ? 3 : 0;
}

// JSON and quoted texts of YAML, which escape C0 by themselves and know \u; nowhere else can the others stand.
std::string WithEscapedControls(const std::string& document) {
  std::string escaped;
  for (size_t i = 0; i < document.size();) {
    const size_t bytes = document[i] == '\n' ? 0 : ControlBytes(std::string_view(document).substr(i));
    if (bytes == 0) {
      escaped += document[i++];
      continue;
    }
    const auto last = static_cast<unsigned char>(document[i + bytes - 1]);
    const unsigned code = bytes < 3 ? last : 0x2000u + (document[i + 1] & 1u) * 0x40u + (last & 0x3fu);
    escaped += fmt::format("\\u{:04x}", code);
    i += bytes;
  }
  return escaped;
}

bool StartsCharacter(char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }

}  // namespace

void PrintEnvelope(std::ostream& out, OutputFormat format, const std::string& kind, ordered_json items) {
  if (!items.is_array()) items = ordered_json::array({std::move(items)});
  const ordered_json envelope = {{"kind", kind}, {"items", std::move(items)}};
  if (format == OutputFormat::kYaml) {
    YAML::Emitter emitter;
    Emit(emitter, envelope);
    out << WithEscapedControls(emitter.c_str()) << "\n";
  } else {
    out << WithEscapedControls(envelope.dump(2, ' ', false, ordered_json::error_handler_t::replace)) << "\n";
  }
}

Table::Table(std::vector<std::string> headings) : headings_(std::move(headings)) {
  for (std::string& heading : headings_) {
    right_.push_back(heading.starts_with('>'));
    if (right_.back()) heading.erase(0, 1);
  }
}

void Table::Add(std::vector<std::string> cells) {
  cells.resize(headings_.size());
  for (std::string& cell : cells) cell = WithoutControls(cell);
  rows_.push_back(std::move(cells));
}

void Table::Print(std::ostream& out, int width) const {
  std::vector<size_t> columns;
  for (const std::string& heading : headings_) columns.push_back(ColumnsOf(heading));
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) columns[i] = std::max(columns[i], ColumnsOf(row[i]));
  }
  const auto print = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(columns[i] - ColumnsOf(row[i]), ' ');
      line += (i > 0 ? "  " : "") + (right_[i] ? padding + row[i] : row[i] + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out << (width > 0 ? Shortened(line, static_cast<size_t>(width)) : line) << "\n";
  };
  print(headings_);
  for (const auto& row : rows_) print(row);
}

size_t ColumnsOf(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), StartsCharacter));
}

std::string Shortened(const std::string& text, size_t columns) {
  if (ColumnsOf(text) <= columns || columns < 4) return text;
  size_t seen = 0, end = 0;
  while (end < text.size() && !(StartsCharacter(text[end]) && seen++ == columns - 3)) ++end;
  return text.substr(0, end) + "...";
}

std::string WithoutControls(const std::string& text) {
  std::string shown;
  for (size_t i = 0; i < text.size();) {
    const size_t bytes = ControlBytes(std::string_view(text).substr(i));
    if (bytes == 0) {
      shown += text[i++];
      continue;
    }
    shown += text[i] == '\n' || text[i] == '\t' ? ' ' : '?';
    i += bytes;
  }
  return shown;
}

std::vector<std::string> Folded(const std::string& text, size_t columns) {
  std::vector<std::string> lines(1);
  size_t used = 0;
  for (const char c : text) {
    if (StartsCharacter(c) && used++ == columns) {
      lines.emplace_back();
      used = 1;
    }
    lines.back() += c;
  }
  return lines;
}

std::vector<std::string> FoldedAtWords(const std::string& text, size_t columns) {
  std::vector<std::string> lines(1);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    begin = end + 1;
    if (word.empty()) continue;
    const size_t used = ColumnsOf(lines.back());
    if (used == 0 || used + 1 + ColumnsOf(word) <= columns) {
      lines.back() += (used == 0 ? "" : " ") + word;
    } else {
      lines.push_back(word);
    }
    std::vector<std::string> pieces = Folded(lines.back(), columns);  // a word longer than a line
    lines.pop_back();
    lines.insert(lines.end(), pieces.begin(), pieces.end());
  }
  return lines;
}

std::string BytesText(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string CountText(int64_t count) {
  std::string digits = std::to_string(std::abs(count));
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3) digits.insert(static_cast<size_t>(i), ",");
  return (count < 0 ? "-" : "") + digits;
}

std::string DurationText(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto whole = std::llround(seconds);
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{}h{:02}m", whole / 3600, whole % 3600 / 60);
  return fmt::format("{}d{:02}h", whole / 86400, whole % 86400 / 3600);
}

}  // namespace longspan::client
