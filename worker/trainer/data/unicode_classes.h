// What a pre-tokenizer's pattern asks about a character, at the Unicode version of the pinned `tokenizers` package
// (unicode_classes.inc, made by make_unicode_classes.py), and UTF-8 decoding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace longspan::trainer {

// Bits, because the Digits pre-tokenizer has a table of its own.
enum CharacterClass : uint8_t {
  kOther = 0,
  kLetter = 1,  // \p{L}
  kNumber = 2,  // \p{N}
  kSpace = 4,   // \s
  kDigit = 8,   // what Digits separates
};

// Bits of a code point below 0x110000.
uint8_t ClassesOf(uint32_t code_point);

struct Character {
  uint32_t code_point = 0;
  uint8_t classes = kOther;
  uint8_t bytes = 0;  // 0 behind the end of the text
};
// The character at `offset`. Requires UTF-8 that FindInvalidUtf8 (tokenizer.h) has passed; the end of the text gives
// bytes == 0.
Character CharacterAt(std::string_view text, size_t offset);

// The white space (\s) of `text` that ends at `end`, not before `floor`; that begins at `at`.
size_t StartOfSpacesBefore(std::string_view text, size_t end, size_t floor);
size_t EndOfSpacesBehind(std::string_view text, size_t at);

constexpr bool IsAsciiLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

}  // namespace longspan::trainer
