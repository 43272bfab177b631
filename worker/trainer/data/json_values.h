// Cuts a stream of JSON into the values that matter: the elements of one array, or values that follow each other. Only
// brackets, strings and commas are looked at; the values themselves are parsed by whoever gets them.
//
// Memory is one value (at most kRecordBytesMax). Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace longspan::trainer {

class JsonValues {
 public:
  // `line` counts from 1, `offset` from 0: where the value begins.
  using Value = std::function<void(std::string_view value, int64_t line, int64_t offset)>;
  using Fail = std::function<void(const std::string& why, int64_t line)>;  // throws

  JsonValues(Value value, Fail fail) : value_(std::move(value)), fail_(std::move(fail)) {}

  void Append(std::string_view bytes);
  void Finish();  // at the end: an array that is not closed, or a value that is cut off, fails

 private:
  enum class Expects { kStart, kFirstElement, kElement, kComma, kValue, kNothing };

  void Byte(char c);
  void Outside(char c);
  void BeginValue(char c);
  void EndValue();

  Value value_;
  Fail fail_;
  Expects expects_ = Expects::kStart;
  bool in_value_ = false;
  bool in_string_ = false;
  bool escaped_ = false;
  int64_t depth_ = 0;  // open brackets of the value
  std::string bytes_;  // of the value so far
  int64_t line_ = 1;
  int64_t offset_ = 0;
  int64_t value_line_ = 0;
  int64_t value_offset_ = 0;
};

}  // namespace longspan::trainer
