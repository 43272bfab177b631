// One value of a job file: from JSON into a field's type and back. Private to this folder.
//
// Read sets `out` and returns what is wrong with the value, empty when nothing; Write gives null for an absent
// optional.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "proto/jobfile/enum_names.h"
#include "proto/jobfile/field_table.h"

namespace longspan::jobfile {

using nlohmann::json;

inline constexpr int64_t kIntegerMax = std::numeric_limits<int64_t>::max();
inline constexpr size_t kTextBytesMax = 4096;
inline constexpr size_t kListEntriesMax = 4096;
inline constexpr size_t kMapEntriesMax = 64;

// ---- reading one value ----

inline std::string Wrong(const json& value, std::string_view wanted) {
  return fmt::format("is {}; must be {}", Shown(value), wanted);
}

inline std::string Read(const json& value, bool& out) {
  if (!value.is_boolean()) return Wrong(value, "true or false");
  out = value.get<bool>();
  return "";
}

inline std::string Read(const json& value, int64_t& out) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kIntegerMax)) {
    return Wrong(value, fmt::format("at most {}", kIntegerMax));
  }
  if (value.is_number_integer()) {
    out = value.get<int64_t>();
    return "";
  }
  // 1e3 and 1000.0 are whole numbers too, as far as a double counts exactly.
  if (value.is_number_float() && std::abs(value.get<double>()) <= 9007199254740992.0 &&
      std::trunc(value.get<double>()) == value.get<double>()) {
    out = static_cast<int64_t>(value.get<double>());
    return "";
  }
  return Wrong(value, "a whole number");
}

inline std::string Read(const json& value, double& out) {
  if (!value.is_number() || !std::isfinite(value.get<double>())) return Wrong(value, "a finite number");
  out = value.get<double>();
  return "";
}

inline std::string Read(const json& value, std::string& out) {
  if (!value.is_string()) return Wrong(value, "a text");
  const std::string& text = value.get_ref<const std::string&>();
  if (text.size() > kTextBytesMax)
    return fmt::format("has {} bytes; at most {} are allowed", text.size(), kTextBytesMax);
  if (text.find('\0') != std::string::npos) return "contains a zero byte";
  try {
    json(text).dump();
  } catch (const json::exception&) {
    return "is not valid UTF-8";
  }
  out = text;
  return "";
}

template <class E>
std::string NamesOf() {
  std::string names;
  for (const auto& [value, name] : EnumNames<E>::kValues) names += (names.empty() ? "" : " | ") + std::string(name);
  return names;
}

template <class E>
  requires std::is_enum_v<E>
std::string Read(const json& value, E& out) {
  const std::optional<E> read = value.is_string() ? ValueOf<E>(value.get_ref<const std::string&>()) : std::nullopt;
  if (!read) return Wrong(value, "one of " + NamesOf<E>());
  out = *read;
  return "";
}

template <class T>
std::string Read(const json& value, std::vector<T>& out) {
  if (!value.is_array()) return Wrong(value, "a list");
  if (value.size() > kListEntriesMax)
    return fmt::format("has {} entries; at most {} are allowed", value.size(), kListEntriesMax);
  out.clear();
  for (size_t i = 0; i < value.size(); ++i) {
    T entry{};
    if (std::string wrong = Read(value[i], entry); !wrong.empty()) return fmt::format("entry {} {}", i + 1, wrong);
    out.push_back(std::move(entry));
  }
  return "";
}

// A number or a boolean in a map of texts is what the user wrote, not a number to us.
inline std::string ReadMapEntry(const json& value, std::string& out) {
  if (!value.is_number() && !value.is_boolean()) return Read(value, out);
  out = value.dump();
  return "";
}
template <class T>
std::string ReadMapEntry(const json& value, T& out) {
  return Read(value, out);
}

template <class T>
std::string Read(const json& value, std::map<std::string, T>& out) {
  if (!value.is_object()) {
    return Wrong(value, std::is_same_v<T, std::string> ? "a map of texts" : "a map of names to numbers");
  }
  if (value.size() > kMapEntriesMax)
    return fmt::format("has {} entries; at most {} are allowed", value.size(), kMapEntriesMax);
  out.clear();
  for (const auto& [key, entry] : value.items()) {
    T read{};
    if (std::string wrong = ReadMapEntry(entry, read); !wrong.empty())
      return fmt::format("entry {} {}", Shown(key), wrong);
    out.emplace(key, std::move(read));
  }
  return "";
}

template <class T>
std::string Read(const json& value, std::optional<T>& out) {
  if (value.is_null()) {
    out.reset();
    return "";
  }
  T read{};
  std::string wrong = Read(value, read);
  if (wrong.empty()) out = read;
  return wrong;
}

// ---- writing one value ----

template <class T>
json Write(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return NameOf(value);
  } else {
    return json(value);
  }
}
template <class T>
json Write(const std::vector<T>& value) {
  return value.empty() ? json::array() : json(value);
}
template <class T>
json Write(const std::map<std::string, T>& value) {
  return value.empty() ? json::object() : json(value);
}
template <class T>
json Write(const std::optional<T>& value) {
  return value ? Write(*value) : json();
}

template <class T>
struct Plain {
  using Type = T;
  static constexpr bool kOptional = false;
};
template <class T>
struct Plain<std::optional<T>> {
  using Type = T;
  static constexpr bool kOptional = true;
};

template <class T>
std::string TypeName() {
  if constexpr (std::is_same_v<T, bool>) return "boolean";
  if constexpr (std::is_same_v<T, int64_t>) return "integer";
  if constexpr (std::is_same_v<T, double>) return "number";
  if constexpr (std::is_same_v<T, std::string>) return "string";
  if constexpr (std::is_same_v<T, std::vector<std::string>>) return "list of strings";
  if constexpr (std::is_same_v<T, std::vector<int64_t>>) return "list of integers";
  if constexpr (std::is_same_v<T, std::map<std::string, std::string>>) return "map";
  if constexpr (std::is_same_v<T, std::map<std::string, int64_t>>) return "map of integers";
  if constexpr (std::is_same_v<T, std::map<std::string, double>>) return "map of numbers";
  if constexpr (std::is_enum_v<T>) return NamesOf<T>();
  return "";
}

}  // namespace longspan::jobfile
