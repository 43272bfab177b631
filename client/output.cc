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

bool StartsCharacter(char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }

}  // namespace

void PrintEnvelope(std::ostream& out, OutputFormat format, const std::string& kind, ordered_json items) {
  if (!items.is_array()) items = ordered_json::array({std::move(items)});
  const ordered_json envelope = {{"kind", kind}, {"items", std::move(items)}};
  if (format == OutputFormat::kYaml) {
    YAML::Emitter emitter;
    Emit(emitter, envelope);
    out << emitter.c_str() << "\n";
  } else {
    out << envelope.dump(2, ' ', false, ordered_json::error_handler_t::replace) << "\n";
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
  for (std::string& cell : cells) cell = WithoutControls(std::move(cell));
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

std::string WithoutControls(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = c == '\n' || c == '\t' ? ' ' : '?';
  }
  return text;
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
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{}h{:02}m", whole / 3600, whole % 3600 / 60);
  return fmt::format("{}d{:02}h", whole / 86400, whole % 86400 / 3600);
}

}  // namespace longspan::client
