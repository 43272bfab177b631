// What a text, list or map of a job file must be by itself. Each returns what is wrong, empty when nothing. Private to
// this folder.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace longspan::jobfile {

inline constexpr int64_t kTokensMax = int64_t{1} << 24;
inline constexpr char kNameRule[] =
    "1 to 63 lower-case letters, digits, '-', '.' or '_', with a letter or digit at both ends";

std::string CheckName(const std::string& text);
std::string CheckNotEmpty(const std::string& text);
std::string CheckSources(const std::vector<std::string>& sources);
std::string CheckTargets(const std::vector<std::string>& targets);  // last parts of modules' names
std::string CheckTaskNames(const std::vector<std::string>& tasks);
std::string CheckLabels(const std::map<std::string, std::string>& labels);
std::string CheckRequire(const std::map<std::string, std::string>& labels);  // of a worker
std::string CheckLengths(const std::vector<int64_t>& lengths);
std::string CheckPatternKey(const std::string& key);

// rank_pattern and alpha_pattern: ends of modules' names, and a number above 0 for each.
template <class T>
std::string CheckPattern(const std::map<std::string, T>& pattern) {
  for (const auto& [key, value] : pattern) {
    if (std::string wrong = CheckPatternKey(key); !wrong.empty()) return wrong;
    if (value <= 0) return fmt::format("{} is {}; must be above 0", key, value);
  }
  return "";
}

}  // namespace longspan::jobfile
