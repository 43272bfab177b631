#include "worker/trainer/data/known_patterns.h"

#include "worker/trainer/data/unicode_classes.h"

namespace longspan::trainer {
namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Llama 3's and Qwen 2's differ only in how many digits make a piece.
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Which letters of a pattern are the next piece: every scanner below returns the end of the piece that starts at
// `begin`, which is always behind `begin`. The alternatives are tried in the order of the pattern, as a backtracking
// engine does.

size_t SkipWhile(std::string_view text, size_t at, uint8_t classes) {
  for (;;) {
    const Character c = CharacterAt(text, at);
    if (c.bytes == 0 || (c.classes & classes) == 0) return at;
    at += c.bytes;
  }
}

bool IsPunctuation(const Character& c) { return c.bytes != 0 && (c.classes & (kLetter | kNumber | kSpace)) == 0; }
bool IsLineBreak(const Character& c) { return c.bytes != 0 && (c.code_point == '\r' || c.code_point == '\n'); }

size_t SkipPunctuation(std::string_view text, size_t at) {
  for (;;) {
    const Character c = CharacterAt(text, at);
    if (!IsPunctuation(c)) return at;
    at += c.bytes;
  }
}

size_t SkipLineBreaks(std::string_view text, size_t at) {
  while (at < text.size() && (text[at] == '\r' || text[at] == '\n')) ++at;
  return at;
}

// `\s+(?!\S)|\s+` at a white-space character: a run before more text leaves its last character for the next piece.
size_t EndOfSpaces(std::string_view text, size_t begin) {
  size_t at = begin;
  size_t last = begin;
  for (;;) {
    const Character c = CharacterAt(text, at);
    if (c.bytes == 0) return at;
    if ((c.classes & kSpace) == 0) return last == begin ? at : last;
    last = at;
    at += c.bytes;
  }
}

// `'s|'t|'re|'ve|'m|'ll|'d` at an apostrophe; `begin` when it is none of these.
size_t EndOfContraction(std::string_view text, size_t begin, bool ignore_case) {
  const auto letter = [&](size_t at) -> char {
    if (at >= text.size()) return '\0';
    return ignore_case && text[at] >= 'A' && text[at] <= 'Z' ? static_cast<char>(text[at] - 'A' + 'a') : text[at];
  };
  const char first = letter(begin + 1);
  const char second = letter(begin + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return begin + 2;
  if ((first == 'r' || first == 'v') && second == 'e') return begin + 3;
  if (first == 'l' && second == 'l') return begin + 3;
  // The long s is an s to a pattern that ignores case.
  if (ignore_case && text.substr(begin + 1, 2) == "\xC5\xBF") return begin + 3;
  return begin;
}

// `\s*[\r\n]+`: up to the last line break of the run; `begin` when it has none.
size_t EndOfLastLineBreak(std::string_view text, size_t begin) {
  const size_t end = SkipWhile(text, begin, kSpace);
  for (size_t at = end; at > begin; --at) {
    if (text[at - 1] == '\n' || text[at - 1] == '\r') return at;
  }
  return begin;
}

size_t EndOfNumber(std::string_view text, size_t begin, int digits_max) {
  size_t at = begin;
  for (int i = 0; i < digits_max; ++i) {
    const Character c = CharacterAt(text, at);
    if (c.bytes == 0 || (c.classes & kNumber) == 0) break;
    at += c.bytes;
  }
  return at;
}

size_t EndOfLlama3Piece(std::string_view text, size_t begin, int digits_max) {
  if (text[begin] == '\'') {
    const size_t end = EndOfContraction(text, begin, true);
    if (end != begin) return end;
  }
  const Character first = CharacterAt(text, begin);
  if (first.classes & kLetter) return SkipWhile(text, begin + first.bytes, kLetter);
  if (first.classes & kNumber) return EndOfNumber(text, begin, digits_max);
  const Character second = CharacterAt(text, begin + first.bytes);
  if (!IsLineBreak(first) && second.bytes != 0 && (second.classes & kLetter)) {
    return SkipWhile(text, begin + first.bytes, kLetter);
  }
  if (IsPunctuation(first)) return SkipLineBreaks(text, SkipPunctuation(text, begin));
  if (text[begin] == ' ' && IsPunctuation(second)) return SkipLineBreaks(text, SkipPunctuation(text, begin + 1));
  const size_t line_break = EndOfLastLineBreak(text, begin);
  return line_break != begin ? line_break : EndOfSpaces(text, begin);
}

size_t EndOfThreeDigitsPiece(std::string_view text, size_t begin) { return EndOfLlama3Piece(text, begin, 3); }
size_t EndOfOneDigitPiece(std::string_view text, size_t begin) { return EndOfLlama3Piece(text, begin, 1); }

}  // namespace

size_t EndOfGpt2Piece(std::string_view text, size_t begin) {
  if (text[begin] == '\'') {
    const size_t end = EndOfContraction(text, begin, false);
    if (end != begin) return end;
  }
  const size_t at = text[begin] == ' ' ? begin + 1 : begin;
  const Character c = CharacterAt(text, at);
  if (c.bytes != 0 && (c.classes & kLetter)) return SkipWhile(text, at + c.bytes, kLetter);
  if (c.bytes != 0 && (c.classes & kNumber)) return SkipWhile(text, at + c.bytes, kNumber);
  if (IsPunctuation(c)) return SkipPunctuation(text, at + c.bytes);
  return EndOfSpaces(text, begin);
}

EndOfPiece FindKnownPattern(std::string_view regex) {
  if (regex == kGpt2Pattern) return EndOfGpt2Piece;
  if (regex == kLlama3Pattern) return EndOfThreeDigitsPiece;
  if (regex == kQwen2Pattern) return EndOfOneDigitPiece;
  return nullptr;
}

}  // namespace longspan::trainer
