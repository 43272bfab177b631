#include "worker/trainer/data/json_values.h"

#include <fmt/format.h>

#include "worker/trainer/data/documents.h"

namespace longspan::trainer {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

}  // namespace

void JsonValues::Append(std::string_view bytes) {
  if (offset_ == 0 && bytes.starts_with(kByteOrderMark)) {
    bytes.remove_prefix(kByteOrderMark.size());
    offset_ += static_cast<int64_t>(kByteOrderMark.size());
  }
  for (const char c : bytes) {
    Byte(c);
    ++offset_;
    if (c == '\n') ++line_;
  }
}

void JsonValues::Byte(char c) {
  if (!in_value_) return Outside(c);
  // A number or a word ends where something else begins.
  if (depth_ == 0 && !in_string_ && (IsSpace(c) || c == ',' || c == ']')) {
    EndValue();
    return Outside(c);
  }
  bytes_.push_back(c);
  if (static_cast<int64_t>(bytes_.size()) > kRecordBytesMax) {
    fail_(fmt::format("the record is longer than {} MiB; cut the document", kRecordBytesMax >> 20), value_line_);
  }
  if (in_string_) {
    if (escaped_) {
      escaped_ = false;
    } else if (c == '\\') {
      escaped_ = true;
    } else if (c == '"') {
      in_string_ = false;
      if (depth_ == 0) EndValue();
    }
    return;
  }
  if (c == '"') in_string_ = true;
  if (c == '{' || c == '[') ++depth_;
  if ((c == '}' || c == ']') && depth_ > 0 && --depth_ == 0) EndValue();
}

void JsonValues::Outside(char c) {
  if (IsSpace(c)) return;
  switch (expects_) {
    case Expects::kStart:
      if (c == '[') {
        expects_ = Expects::kFirstElement;
        return;
      }
      expects_ = Expects::kValue;
      return BeginValue(c);
    case Expects::kFirstElement:
      if (c == ']') {
        expects_ = Expects::kNothing;
        return;
      }
      return BeginValue(c);
    case Expects::kElement:
    case Expects::kValue:
      return BeginValue(c);
    case Expects::kComma:
      if (c != ',' && c != ']') fail_("a comma is missing between two records of the array", line_);
      expects_ = c == ',' ? Expects::kElement : Expects::kNothing;
      return;
    case Expects::kNothing:
      fail_("something follows behind the end of the array", line_);
  }
}

void JsonValues::BeginValue(char c) {
  if (c == ',' || c == ']' || c == '}' || c == ':') {
    fail_(fmt::format("'{}' stands where a record is expected", c), line_);
  }
  in_value_ = true;
  value_line_ = line_;
  value_offset_ = offset_;
  bytes_.assign(1, c);
  in_string_ = c == '"';
  depth_ = c == '{' || c == '[' ? 1 : 0;
}

void JsonValues::EndValue() {
  in_value_ = false;
  if (expects_ != Expects::kValue) expects_ = Expects::kComma;
  value_(bytes_, value_line_, value_offset_);
}

void JsonValues::Finish() {
  if (in_value_ && (depth_ > 0 || in_string_)) fail_("the record is not closed: the file is cut off", value_line_);
  if (in_value_) EndValue();
  if (expects_ != Expects::kStart && expects_ != Expects::kValue && expects_ != Expects::kNothing) {
    fail_("the array is not closed: the file is cut off", line_);
  }
}

}  // namespace longspan::trainer
