#include "worker/trainer/data/white_space.h"

#include <cstdint>

#include "worker/trainer/data/unicode_classes.h"

namespace longspan::trainer {
namespace {

// str.isspace(): Unicode's white space and the separators U+001C to U+001F, which \s has not.
bool IsWhiteSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace

std::string_view StripWhiteSpace(std::string_view text) {
  while (!text.empty()) {
    const Character first = CharacterAt(text, 0);
    if (!IsWhiteSpace(first.code_point)) break;
    text.remove_prefix(first.bytes);
  }
  while (!text.empty()) {
    size_t last = text.size() - 1;
    while (last > 0 && (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
    if (!IsWhiteSpace(CharacterAt(text, last).code_point)) break;
    text = text.substr(0, last);
  }
  return text;
}

}  // namespace longspan::trainer
