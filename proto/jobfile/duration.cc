// Durations of job files: "2h30m".
#include <limits>

#include "proto/jobfile/job_file.h"

namespace longspan::jobfile {
namespace {

struct Unit {
  char letter;
  int64_t seconds;
};
constexpr Unit kUnits[] = {{'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}};

}  // namespace

std::optional<int64_t> ParseDurationSeconds(std::string_view text) {
  int64_t total = 0;
  size_t next_unit = 0;  // units come in falling order, each at most once
  size_t position = 0;
  if (text.empty()) return std::nullopt;
  while (position < text.size()) {
    int64_t number = 0;
    const size_t digits_begin = position;
    while (position < text.size() && text[position] >= '0' && text[position] <= '9') {
      if (position - digits_begin >= 12) return std::nullopt;
      number = number * 10 + (text[position++] - '0');
    }
    if (position == digits_begin || position == text.size() || number == 0) return std::nullopt;
    while (next_unit < std::size(kUnits) && kUnits[next_unit].letter != text[position]) ++next_unit;
    if (next_unit == std::size(kUnits)) return std::nullopt;
    total += number * kUnits[next_unit++].seconds;  // at most 10^12 * 86400 four times: fits
    ++position;
  }
  return total;
}

std::string FormatDurationSeconds(int64_t seconds) {
  if (seconds <= 0) return "0s";
  std::string text;
  for (const Unit& unit : kUnits) {
    if (const int64_t number = seconds / unit.seconds; number > 0) {
      text += std::to_string(number) + unit.letter;
      seconds %= unit.seconds;
    }
  }
  return text;
}

}  // namespace longspan::jobfile
