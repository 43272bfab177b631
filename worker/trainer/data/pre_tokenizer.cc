#include "worker/trainer/data/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <optional>

#include "worker/trainer/data/unicode_classes.h"
#include "worker/trainer/errors.h"

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

template <typename EndOfPiece>
void ScanPieces(std::string_view text, Pieces& out, EndOfPiece end_of_piece) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = end_of_piece(text, begin);
    out.views.push_back(text.substr(begin, end - begin));
    begin = end;
  }
}

class Gpt2Split : public SplitStep {
 public:
  void Split(std::string_view piece, Pieces& out) const override { ScanPieces(piece, out, EndOfGpt2Piece); }
  LetterNewline AtLetterNewline() const override { return LetterNewline::kCuts; }
};

class Llama3Split : public SplitStep {
 public:
  explicit Llama3Split(int digits_max) : digits_max_(digits_max) {}
  void Split(std::string_view piece, Pieces& out) const override {
    ScanPieces(piece, out,
               [this](std::string_view text, size_t at) { return EndOfLlama3Piece(text, at, digits_max_); });
  }
  LetterNewline AtLetterNewline() const override { return LetterNewline::kCuts; }

 private:
  int digits_max_;
};

class DigitsSplit : public SplitStep {
 public:
  explicit DigitsSplit(bool individual) : individual_(individual) {}
  void Split(std::string_view piece, Pieces& out) const override {
    ScanPieces(piece, out, [this](std::string_view text, size_t begin) {
      const Character first = CharacterAt(text, begin);
      if ((first.classes & kDigit) == 0) return SkipNonDigits(text, begin);
      return individual_ ? begin + first.bytes : SkipWhile(text, begin, kDigit);
    });
  }
  LetterNewline AtLetterNewline() const override { return LetterNewline::kIndifferent; }

 private:
  static size_t SkipNonDigits(std::string_view text, size_t at) {
    for (;;) {
      const Character c = CharacterAt(text, at);
      if (c.bytes == 0 || (c.classes & kDigit)) return at;
      at += c.bytes;
    }
  }
  bool individual_;
};

// What becomes of the text that a pattern matches and of the text between.
enum class Keep { kBoth, kMatches, kBetween };

void PushPiece(std::string_view text, size_t begin, size_t end, Pieces& out) {
  if (end > begin) out.views.push_back(text.substr(begin, end - begin));
}

// Cuts around matches; `next(text, from)` gives the next non-empty match at or behind `from`.
template <typename NextMatch>
void SplitAround(std::string_view text, Keep keep, Pieces& out, NextMatch next) {
  size_t done = 0;
  while (done < text.size()) {
    const std::optional<std::pair<size_t, size_t>> match = next(text, done);
    const size_t begin = match ? match->first : text.size();
    if (keep != Keep::kMatches) PushPiece(text, done, begin, out);
    if (!match) return;
    if (keep != Keep::kBetween) PushPiece(text, begin, match->second, out);
    done = match->second;
  }
}

class LiteralSplit : public SplitStep {
 public:
  LiteralSplit(std::string literal, Keep keep) : literal_(std::move(literal)), keep_(keep) {}
  void Split(std::string_view piece, Pieces& out) const override {
    SplitAround(piece, keep_, out,
                [this](std::string_view text, size_t from) -> std::optional<std::pair<size_t, size_t>> {
                  const size_t at = text.find(literal_, from);
                  if (at == std::string_view::npos) return std::nullopt;
                  return std::pair{at, at + literal_.size()};
                });
  }
  LetterNewline AtLetterNewline() const override {
    return literal_.find('\n') == std::string::npos ? LetterNewline::kIndifferent : LetterNewline::kUnknown;
  }

 private:
  std::string literal_;
  Keep keep_;
};

class RegexSplit : public SplitStep {
 public:
  RegexSplit(const std::string& pattern, Keep keep, const std::string& file) : keep_(keep) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                              &error, &offset, nullptr));
    if (code_ == nullptr) {
      std::array<PCRE2_UCHAR, 256> message{};
      pcre2_get_error_message(error, message.data(), message.size());
      throw UserError(fmt::format("cannot use {}: the pre_tokenizer's pattern `{}` does not compile: {} at byte {}",
                                  file, pattern, reinterpret_cast<const char*>(message.data()), offset));
    }
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // Only faster: without it the interpreter runs.
  }

  void Split(std::string_view piece, Pieces& out) const override {
    const std::unique_ptr<pcre2_match_data, FreeMatch> match(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    SplitAround(piece, keep_, out, [&](std::string_view text, size_t from) { return Next(text, from, match.get()); });
  }
  LetterNewline AtLetterNewline() const override { return LetterNewline::kUnknown; }

 private:
  struct FreeCode {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  struct FreeMatch {
    void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
  };

  std::optional<std::pair<size_t, size_t>> Next(std::string_view text, size_t from, pcre2_match_data* match) const {
    while (from < text.size()) {
      const int rc = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                 PCRE2_NO_UTF_CHECK, match, nullptr);
      if (rc == PCRE2_ERROR_NOMATCH) return std::nullopt;
      if (rc < 0) throw UserError(fmt::format("the pre_tokenizer's pattern gave up on a text (PCRE2 error {})", rc));
      const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match);
      if (span[1] > span[0]) return std::pair{span[0], span[1]};
      from = span[1] + std::max<size_t>(1, CharacterAt(text, span[1]).bytes);  // An empty match cuts nothing.
    }
    return std::nullopt;
  }

  std::unique_ptr<pcre2_code, FreeCode> code_;
  Keep keep_;
};

// The ByteLevel member: perhaps a space in front of each piece, perhaps GPT-2's pattern. Its mapping of bytes to
// letters happens in the merges, which work on bytes.
class ByteLevelSplit : public SplitStep {
 public:
  ByteLevelSplit(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space), use_regex_(use_regex) {}
  void Split(std::string_view piece, Pieces& out) const override {
    if (add_prefix_space_ && piece.front() != ' ') piece = out.made.emplace_back(" " + std::string(piece));
    if (use_regex_) {
      ScanPieces(piece, out, EndOfGpt2Piece);
    } else {
      out.views.push_back(piece);
    }
  }
  LetterNewline AtLetterNewline() const override {
    if (add_prefix_space_) return LetterNewline::kUnknown;
    return use_regex_ ? LetterNewline::kCuts : LetterNewline::kIndifferent;
  }

 private:
  bool add_prefix_space_;
  bool use_regex_;
};

Keep ParseBehavior(const nlohmann::json& split, const std::string& file) {
  const std::string behavior = split.at("behavior").get<std::string>();
  const bool invert = split.value("invert", false);
  if (behavior == "Isolated") return Keep::kBoth;
  if (behavior == "Removed") return invert ? Keep::kMatches : Keep::kBetween;
  throw UserError(
      fmt::format("cannot use {}: the pre_tokenizer Split has the behavior {}; Isolated and Removed are supported",
                  file, behavior));
}

std::unique_ptr<SplitStep> ParseSplit(const nlohmann::json& split, const std::string& file) {
  const Keep keep = ParseBehavior(split, file);
  const nlohmann::json& pattern = split.at("pattern");
  if (pattern.contains("String")) return std::make_unique<LiteralSplit>(pattern["String"].get<std::string>(), keep);
  const std::string regex = pattern.at("Regex").get<std::string>();
  // These patterns match every character, so nothing lies between.
  if (keep != Keep::kBetween) {
    if (regex == kGpt2Pattern) return std::make_unique<Gpt2Split>();
    if (regex == kLlama3Pattern) return std::make_unique<Llama3Split>(3);
    if (regex == kQwen2Pattern) return std::make_unique<Llama3Split>(1);
  }
  return std::make_unique<RegexSplit>(regex, keep, file);
}

void ParseInto(const nlohmann::json& description, const std::string& file, bool& has_byte_level,
               std::vector<std::unique_ptr<SplitStep>>& steps) {
  const std::string type = description.at("type").get<std::string>();
  if (has_byte_level) {
    throw UserError(fmt::format(
        "cannot use {}: the pre_tokenizer {} stands behind ByteLevel; ByteLevel must be the last", file, type));
  }
  if (type == "Sequence") {
    for (const nlohmann::json& member : description.at("pretokenizers")) ParseInto(member, file, has_byte_level, steps);
  } else if (type == "ByteLevel") {
    has_byte_level = true;
    steps.push_back(std::make_unique<ByteLevelSplit>(description.value("add_prefix_space", true),
                                                     description.value("use_regex", true)));
  } else if (type == "Split") {
    steps.push_back(ParseSplit(description, file));
  } else if (type == "Digits") {
    steps.push_back(std::make_unique<DigitsSplit>(description.value("individual_digits", false)));
  } else {
    throw UserError(fmt::format(
        "cannot use {}: the pre_tokenizer {} is not supported; ByteLevel, Split, Digits and Sequence are", file, type));
  }
}

}  // namespace

PreTokenizer PreTokenizer::Parse(const nlohmann::json& description, const std::string& file) {
  PreTokenizer result;
  bool has_byte_level = false;
  if (description.is_object()) ParseInto(description, file, has_byte_level, result.steps_);
  if (!has_byte_level) {
    throw UserError(
        fmt::format("cannot use {}: it has no ByteLevel pre_tokenizer; only byte-level BPE is supported", file));
  }
  return result;
}

void PreTokenizer::Split(std::string_view text, Pieces& out) const {
  out.views.clear();
  out.made.clear();
  if (text.empty()) return;
  out.views.push_back(text);
  std::vector<std::string_view> coarse;
  for (const std::unique_ptr<SplitStep>& step : steps_) {
    coarse.swap(out.views);
    out.views.clear();
    for (std::string_view piece : coarse) step->Split(piece, out);
  }
}

bool PreTokenizer::CanCutBeforeNewline() const {
  const auto any = [this](SplitStep::LetterNewline kind) {
    return std::any_of(steps_.begin(), steps_.end(), [&](const auto& step) { return step->AtLetterNewline() == kind; });
  };
  return any(SplitStep::LetterNewline::kCuts) && !any(SplitStep::LetterNewline::kUnknown);
}

}  // namespace longspan::trainer
