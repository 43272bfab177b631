#include "worker/trainer/data/unicode_classes.h"

#include <string>
#include <vector>

#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {
namespace {

struct CodePointRange {
  uint32_t first;
  uint32_t last;
};
#include "worker/trainer/data/unicode_classes.inc"

constexpr uint32_t kCodePoints = 0x110000;

template <size_t N>
void Mark(const CodePointRange (&ranges)[N], CharacterClass bit, std::vector<uint8_t>& classes) {
  for (const CodePointRange& range : ranges) {
    for (uint32_t c = range.first; c <= range.last; ++c) classes[c] |= bit;
  }
}

// A megabyte, made once: one load per character instead of a search.
std::vector<uint8_t> MakeTable() {
  std::vector<uint8_t> classes(kCodePoints, kOther);
  Mark(kLetters, kLetter, classes);
  Mark(kNumbers, kNumber, classes);
  Mark(kSpaces, kSpace, classes);
  Mark(kDigits, kDigit, classes);
  return classes;
}

bool IsContinuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

// Length of the sequence that `lead` starts; 0 when it cannot start one.
size_t SequenceLength(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

// The second byte has a narrower range behind these leads: no overlong forms, no surrogates, nothing above U+10FFFF.
bool SecondByteFits(unsigned char lead, unsigned char second) {
  if (lead == 0xE0) return second >= 0xA0;
  if (lead == 0xED) return second <= 0x9F;
  if (lead == 0xF0) return second >= 0x90;
  if (lead == 0xF4) return second <= 0x8F;
  return true;
}

}  // namespace

uint8_t ClassesOf(uint32_t code_point) {
  static const std::vector<uint8_t> table = MakeTable();
  return table[code_point];
}

Character CharacterAt(std::string_view text, size_t offset) {
  if (offset >= text.size()) return {};
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[offset + i])); };
  uint32_t c = byte(0);
  uint8_t bytes = 1;
  if (c >= 0xF0) {
    c = (c & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
    bytes = 4;
  } else if (c >= 0xE0) {
    c = (c & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    bytes = 3;
  } else if (c >= 0x80) {
    c = (c & 0x1F) << 6 | (byte(1) & 0x3F);
    bytes = 2;
  }
  return {c, ClassesOf(c), bytes};
}

size_t StartOfSpacesBefore(std::string_view text, size_t end, size_t floor) {
  while (end > floor) {
    size_t at = end - 1;
    while (at > 0 && IsContinuation(static_cast<unsigned char>(text[at]))) --at;
    if ((CharacterAt(text, at).classes & kSpace) == 0) break;
    end = at;
  }
  return end > floor ? end : floor;
}

size_t EndOfSpacesBehind(std::string_view text, size_t at) {
  for (;;) {
    const Character c = CharacterAt(text, at);
    if (c.bytes == 0 || (c.classes & kSpace) == 0) return at;
    at += c.bytes;
  }
}

std::optional<size_t> FindInvalidUtf8(std::string_view text, bool incomplete_tail_ok) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t length = SequenceLength(lead);
    if (length == 0) return i;
    for (size_t k = 1; k < length; ++k) {
      if (i + k >= text.size()) return incomplete_tail_ok ? std::nullopt : std::optional<size_t>(i);
      const auto next = static_cast<unsigned char>(text[i + k]);
      if (!IsContinuation(next) || (k == 1 && !SecondByteFits(lead, next))) return i;
    }
    i += length;
  }
  return std::nullopt;
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
  std::string result;
  for (;;) {
    const std::optional<size_t> bad = FindInvalidUtf8(text);
    result.append(text.substr(0, bad.value_or(text.size())));
    if (!bad) return result;
    result.append(kReplacement);
    // The longest start of a sequence counts as one mistake, any other byte as one.
    size_t skipped = *bad + 1;
    const auto lead = static_cast<unsigned char>(text[*bad]);
    for (size_t k = 1; k < SequenceLength(lead) && skipped < text.size(); ++k, ++skipped) {
      const auto next = static_cast<unsigned char>(text[skipped]);
      if (!IsContinuation(next) || (k == 1 && !SecondByteFits(lead, next))) break;
    }
    text.remove_prefix(skipped);
  }
}

}  // namespace longspan::trainer
