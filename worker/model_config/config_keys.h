// Typed keys of a model's config.json. Private to this folder.
//
// Every message is a UserError that opens with the file and names the key. A key that is null counts as absent, as in
// transformers. Refers to what it reads: neither may go away before the reader.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "worker/trainer/errors.h"

namespace longspan::trainer {

class KeyReader {
 public:
  // `prefix` stands before every key in a message: "rope_scaling." for the keys of that section.
  KeyReader(const nlohmann::json& document, const std::string& where, std::string prefix = "")
      : document_(document), where_(where), prefix_(std::move(prefix)) {}

  const nlohmann::json* Find(const char* key) const {
    const auto found = document_.find(key);
    return found == document_.end() || found->is_null() ? nullptr : &*found;
  }
  bool IsNull(const char* key) const { return document_.contains(key) && document_.at(key).is_null(); }
  int64_t PositiveInteger(const char* key, std::optional<int64_t> fallback = std::nullopt) const {
    const nlohmann::json* value = Find(key);
    if (value == nullptr && fallback) return *fallback;
    if (value == nullptr) Fail(key, "is missing");
    if (!value->is_number_integer() || value->get<int64_t>() < 1 || value->get<int64_t>() > (int64_t{1} << 40)) {
      Fail(key, "must be a whole number of at least 1, not " + value->dump());
    }
    return value->get<int64_t>();
  }
  // At least 0.
  int64_t WholeNumber(const char* key, int64_t fallback) const {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return fallback;
    return value->is_number_integer() && *value == 0 ? 0 : PositiveInteger(key);
  }
  double PositiveNumber(const char* key, std::optional<double> fallback = std::nullopt) const {
    const nlohmann::json* value = Find(key);
    if (value == nullptr && fallback) return *fallback;
    if (value == nullptr) Fail(key, "is missing");
    if (!value->is_number() || !(value->get<double>() > 0) || !std::isfinite(value->get<double>())) {
      Fail(key, "must be a number above 0, not " + value->dump());
    }
    return value->get<double>();
  }
  std::optional<double> OptionalPositiveNumber(const char* key) const {
    if (Find(key) == nullptr) return std::nullopt;
    return PositiveNumber(key);
  }
  bool Boolean(const char* key, bool fallback) const {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) Fail(key, "must be true or false, not " + value->dump());
    return value->get<bool>();
  }
  std::string String(const char* key, const std::string& fallback) const {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_string()) Fail(key, "must be a string, not " + value->dump());
    return value->get<std::string>();
  }
  // One id or a list of them.
  std::vector<int64_t> TokenIds(const char* key) const {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return {};
    std::vector<int64_t> ids;
    for (const nlohmann::json& id : value->is_array() ? *value : nlohmann::json::array({*value})) {
      if (!id.is_number_integer()) Fail(key, "must be a token id or a list of them, not " + value->dump());
      if (id.get<int64_t>() >= 0) ids.push_back(id.get<int64_t>());
    }
    return ids;
  }
  [[noreturn]] void Fail(const std::string& key, const std::string& what) const {
    throw UserError(fmt::format("cannot read {}: {}{} {}", where_, prefix_, key, what));
  }

 private:
  const nlohmann::json& document_;
  const std::string& where_;
  std::string prefix_;
};

}  // namespace longspan::trainer
