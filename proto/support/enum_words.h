// Words for protobuf enumeration values: KIND_LONGLORA of enum Kind is LONGLORA, or "longlora" in a job file.
#pragma once

#include <google/protobuf/descriptor.h>

#include <string>

namespace longspan {

// "LONGLORA": the value's name without the enumeration's own name in front.
inline std::string UpperCaseWord(const google::protobuf::EnumValueDescriptor& value) {
  std::string prefix;
  for (const char c : value.type()->name()) {
    const bool upper = c >= 'A' && c <= 'Z';
    if (upper && !prefix.empty()) prefix += '_';
    prefix += upper ? c : static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  }
  prefix += '_';
  return value.name().starts_with(prefix) ? value.name().substr(prefix.size()) : value.name();
}

// "longlora".
inline std::string LowerCaseWord(const google::protobuf::EnumValueDescriptor& value) {
  std::string word = UpperCaseWord(value);
  for (char& c : word) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return word;
}

// "QUEUED" for JOB_STATE_QUEUED; the number for a value this program does not know.
template <class E>
std::string WordOf(E value) {
  const auto* found = google::protobuf::GetEnumDescriptor<E>()->FindValueByNumber(static_cast<int>(value));
  return found == nullptr ? std::to_string(static_cast<int>(value)) : UpperCaseWord(*found);
}

}  // namespace longspan
