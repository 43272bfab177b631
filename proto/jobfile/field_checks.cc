#include "proto/jobfile/field_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "proto/jobfile/field_table.h"

namespace longspan::jobfile {
namespace {

bool IsLowerOrDigit(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }
bool IsLetterOrDigit(char c) { return IsLowerOrDigit(c) || (c >= 'A' && c <= 'Z'); }

bool IsName(std::string_view text) {
  if (text.empty() || text.size() > 63 || !IsLowerOrDigit(text.front()) || !IsLowerOrDigit(text.back())) return false;
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return IsLowerOrDigit(c) || std::strchr("-._", c) != nullptr; });
}

bool IsModuleName(std::string_view text) {
  return !text.empty() && text.size() <= 63 &&
         std::all_of(text.begin(), text.end(), [](char c) { return IsLetterOrDigit(c) || c == '_'; });
}

}  // namespace

std::string CheckName(const std::string& text) {
  return IsName(text) ? "" : fmt::format("is {}; must be {}", Shown(text), kNameRule);
}

std::string CheckNotEmpty(const std::string& text) { return text.empty() ? "is empty; must be a path or name" : ""; }

std::string CheckSources(const std::vector<std::string>& sources) {
  for (size_t i = 0; i < sources.size(); ++i) {
    if (sources[i].empty()) return fmt::format("entry {} is empty; must be a file or folder", i + 1);
  }
  return "";
}

std::string CheckTargets(const std::vector<std::string>& targets) {
  for (size_t i = 0; i < targets.size(); ++i) {
    if (!IsModuleName(targets[i])) {
      return fmt::format("entry {} is {}; must be the last part of a module's name, such as q_proj", i + 1,
                         Shown(targets[i]));
    }
    if (std::count(targets.begin(), targets.end(), targets[i]) > 1) return fmt::format("lists {} twice", targets[i]);
  }
  return "";
}

std::string CheckTaskNames(const std::vector<std::string>& tasks) {
  for (size_t i = 0; i < tasks.size(); ++i) {
    const bool good = !tasks[i].empty() && tasks[i].size() <= 127 && tasks[i].front() != '.' &&
                      std::all_of(tasks[i].begin(), tasks[i].end(),
                                  [](char c) { return IsLetterOrDigit(c) || std::strchr("-._", c) != nullptr; });
    if (!good) return fmt::format("entry {} is {}; must be the name of a file, without .jsonl", i + 1, Shown(tasks[i]));
    if (std::count(tasks.begin(), tasks.end(), tasks[i]) > 1) return fmt::format("lists {} twice", tasks[i]);
  }
  return "";
}

std::string CheckLabels(const std::map<std::string, std::string>& labels) {
  for (const auto& [key, value] : labels) {
    const bool key_good = !key.empty() && key.size() <= 63 && IsLetterOrDigit(key.front()) &&
                          IsLetterOrDigit(key.back()) && std::all_of(key.begin(), key.end(), [](char c) {
                            return IsLetterOrDigit(c) || std::strchr("-._/", c) != nullptr;
                          });
    if (!key_good) {
      return fmt::format(
          "has the key {}; must be 1 to 63 letters, digits, '-', '.', '_' or '/', with a letter or digit at both ends",
          Shown(key));
    }
    if (value.size() > 255) return fmt::format("{} has {} bytes; at most 255 are allowed", key, value.size());
  }
  return "";
}

std::string CheckRequire(const std::map<std::string, std::string>& labels) {
  if (std::string wrong = CheckLabels(labels); !wrong.empty()) return wrong;
  for (const auto& [key, value] : labels) {
    if (value.empty()) return fmt::format("{} is empty; must be the value that the worker's label has", key);
  }
  return "";
}

std::string CheckLengths(const std::vector<int64_t>& lengths) {
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 2 || lengths[i] > kTokensMax) {
      return fmt::format("entry {} is {}; must be 2 to {}", i + 1, lengths[i], kTokensMax);
    }
    if (std::count(lengths.begin(), lengths.end(), lengths[i]) > 1) return fmt::format("lists {} twice", lengths[i]);
  }
  return "";
}

std::string CheckPatternKey(const std::string& key) {
  const bool good =
      !key.empty() && key.size() <= 255 && key.front() != '.' && key.back() != '.' &&
      std::all_of(key.begin(), key.end(), [](char c) { return IsLetterOrDigit(c) || c == '_' || c == '.'; });
  if (good) return "";
  return fmt::format("has the key {}; must be the end of a module's name, such as q_proj or layers.0.mlp.up_proj",
                     Shown(key));
}

}  // namespace longspan::jobfile
