// A value of a JSON file and where it stands, so that every complaint about a file names the file and the place:
// `cannot use model/tokenizer.json: model.merges[17] is a number; a string is needed`. Refers to the document, which
// must outlive it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longspan::trainer {

class JsonPlace {
 public:
  JsonPlace(const nlohmann::json& document, std::string file) : JsonPlace(document, std::move(file), "", 0) {}

  // All of these throw UserError when the value is of another type.
  JsonPlace At(std::string_view key) const;                   // a member of an object; throws when it is missing
  std::optional<JsonPlace> Find(std::string_view key) const;  // empty when it is missing or null
  std::vector<JsonPlace> Elements() const;                    // of a list
  std::string String() const;
  bool Bool() const;
  uint64_t Unsigned(uint64_t largest) const;

  std::string StringOr(std::string_view key, std::string otherwise) const;
  bool BoolOr(std::string_view key, bool otherwise) const;
  // The member "type" of an object.
  std::string Type() const { return At("type").String(); }

  const nlohmann::json& value() const { return *value_; }
  const std::string& file() const { return file_; }
  std::string path() const { return path_.empty() ? "it" : path_; }

  [[noreturn]] void Fail(const std::string& why) const;  // "cannot use FILE: WHY"
  [[noreturn]] void FailType(const char* needed) const;  // "... PATH is a number; a string is needed"

 private:
  JsonPlace(const nlohmann::json& value, std::string file, std::string path, int depth);
  JsonPlace Member(const nlohmann::json& value, std::string_view key) const;

  const nlohmann::json* value_;
  std::string file_;
  std::string path_;
  int depth_;
};

// Parses a whole file. Throws UserError that names the byte where it stops being JSON.
nlohmann::json ParseJsonFile(const std::string& text, const std::string& file);

// "a list", "a number": what stands there, in words.
const char* JsonTypeName(const nlohmann::json& value);

}  // namespace longspan::trainer
