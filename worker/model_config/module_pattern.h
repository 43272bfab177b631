// Values by the end of a module's name, as PEFT's rank_pattern and alpha_pattern have them.
//
// A key matches a name that is equal to it, or that ends with it right behind a '.': "q_proj" and "0.self_attn.q_proj"
// both match "model.layers.0.self_attn.q_proj", "proj" does not. In a key PEFT reads '.' as any character, and so do
// we. The first key that matches counts. Pure.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace longspan::trainer {

bool MatchesModule(std::string_view key, std::string_view name);

template <class T>
using ModulePattern = std::vector<std::pair<std::string, T>>;

template <class T>
T ValueOf(const ModulePattern<T>& pattern, std::string_view name, T otherwise) {
  for (const auto& [key, value] : pattern) {
    if (MatchesModule(key, name)) return value;
  }
  return otherwise;
}

// Of a job file, whose keys have no order: the longest key that matches a name is the one that means it most closely.
template <class T>
ModulePattern<T> LongestFirst(const std::map<std::string, T>& values) {
  ModulePattern<T> pattern;
  for (const auto& item : values) {
    auto place = pattern.begin();
    while (place != pattern.end() && place->first.size() >= item.first.size()) ++place;
    pattern.insert(place, item);
  }
  return pattern;
}

// The pattern that gives every module its value, in a form in which no module is matched by two keys: one key for the
// modules of one last name that all have the same value, else the whole names of those that differ from `otherwise`.
template <class T>
std::map<std::string, T> DisjointPattern(const std::map<std::string, T>& value_of_module, T otherwise) {
  std::map<std::string, std::map<std::string, T>> by_last_name;
  for (const auto& [name, value] : value_of_module) by_last_name[name.substr(name.rfind('.') + 1)][name] = value;
  std::map<std::string, T> pattern;
  for (const auto& [last_name, values] : by_last_name) {
    const T first = values.begin()->second;
    bool all_equal = true;
    for (const auto& [name, value] : values) all_equal = all_equal && value == first;
    if (all_equal && first != otherwise) pattern[last_name] = first;
    if (all_equal) continue;
    for (const auto& [name, value] : values) {
      if (value != otherwise) pattern[name] = value;
    }
  }
  return pattern;
}

}  // namespace longspan::trainer
