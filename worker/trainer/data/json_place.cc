#include "worker/trainer/data/json_place.h"

#include <fmt/format.h>

#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

// No file of this kind is deeper; readers that follow nested members recurse as deep as this.
constexpr int kDepthMax = 64;

}  // namespace

const char* JsonTypeName(const nlohmann::json& value) {
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "true or false";
  if (value.is_number()) return "a number";
  if (value.is_string()) return "a string";
  if (value.is_array()) return "a list";
  return "an object";
}

JsonPlace::JsonPlace(const nlohmann::json& value, std::string file, std::string path, int depth)
    : value_(&value), file_(std::move(file)), path_(std::move(path)), depth_(depth) {
  if (depth_ > kDepthMax) Fail(fmt::format("its members lie in one another more than {} deep", kDepthMax));
}

void JsonPlace::Fail(const std::string& why) const { throw UserError(fmt::format("cannot use {}: {}", file_, why)); }

void JsonPlace::FailType(const char* needed) const {
  Fail(fmt::format("{} is {}; {} is needed", path(), JsonTypeName(*value_), needed));
}

JsonPlace JsonPlace::Member(const nlohmann::json& value, std::string_view key) const {
  return {value, file_, path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key), depth_ + 1};
}

std::optional<JsonPlace> JsonPlace::Find(std::string_view key) const {
  if (!value_->is_object()) FailType("an object");
  const auto found = value_->find(key);
  if (found == value_->end() || found->is_null()) return std::nullopt;
  return Member(*found, key);
}

JsonPlace JsonPlace::At(std::string_view key) const {
  if (auto member = Find(key)) return *member;
  Fail(path_.empty() ? fmt::format("it has no \"{}\"", key) : fmt::format("{} has no \"{}\"", path_, key));
}

std::vector<JsonPlace> JsonPlace::Elements() const {
  if (!value_->is_array()) FailType("a list");
  std::vector<JsonPlace> elements;
  elements.reserve(value_->size());
  for (const nlohmann::json& element : *value_) {
    elements.push_back({element, file_, fmt::format("{}[{}]", path_, elements.size()), depth_ + 1});
  }
  return elements;
}

std::string JsonPlace::String() const {
  if (!value_->is_string()) FailType("a string");
  return value_->get<std::string>();
}

bool JsonPlace::Bool() const {
  if (!value_->is_boolean()) FailType("true or false");
  return value_->get<bool>();
}

uint64_t JsonPlace::Unsigned(uint64_t largest) const {
  if (!value_->is_number_unsigned()) {
    if (value_->is_number()) Fail(fmt::format("{} is {}; a whole number from 0 is needed", path(), value_->dump()));
    FailType("a number");
  }
  const auto number = value_->get<uint64_t>();
  if (number > largest) Fail(fmt::format("{} is {}; the largest that can be is {}", path(), number, largest));
  return number;
}

std::string JsonPlace::StringOr(std::string_view key, std::string otherwise) const {
  const auto member = Find(key);
  return member ? member->String() : std::move(otherwise);
}

bool JsonPlace::BoolOr(std::string_view key, bool otherwise) const {
  const auto member = Find(key);
  return member ? member->Bool() : otherwise;
}

nlohmann::json ParseJsonFile(const std::string& text, const std::string& file) {
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    // nlohmann's messages begin with "[json.exception.parse_error.101] ".
    const std::string_view message = error.what();
    const size_t end = message.find("] ");
    throw UserError(fmt::format("cannot read {}: it is not JSON: {}", file,
                                end == std::string_view::npos ? message : message.substr(end + 2)));
  }
}

}  // namespace longspan::trainer
