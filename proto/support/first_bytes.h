// The beginning of a text, for messages that have a limit.
#pragma once

#include <string>
#include <string_view>

namespace longspan {

// `text`, or its first bytes_max bytes at most, ending with a whole UTF-8 character, and "...".
inline std::string FirstBytes(std::string_view text, size_t bytes_max) {
  if (text.size() <= bytes_max) return std::string(text);
  size_t end = bytes_max;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return std::string(text.substr(0, end)) + "...";
}

}  // namespace longspan
