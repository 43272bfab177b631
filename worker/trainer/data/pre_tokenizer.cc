#include "worker/trainer/data/pre_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>

#include "worker/trainer/data/known_patterns.h"
#include "worker/trainer/data/pattern.h"
#include "worker/trainer/data/text_normalization.h"
#include "worker/trainer/data/unicode_classes.h"

namespace longspan::trainer {
namespace {

// What becomes of the text that a pattern matches and of the text between.
enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Span {
  size_t begin;
  size_t end;
  bool match;
};

// Spans cover the text in order. A match goes on with the span before it, or like spans go on with each other.
std::vector<Span> Joined(const std::vector<Span>& spans, Behavior behavior) {
  std::vector<Span> joined;
  bool previous_match = false;
  for (const Span& span : spans) {
    const bool joins = behavior == Behavior::kContiguous ? span.match == previous_match : span.match && !previous_match;
    if (joins && !joined.empty()) {
      joined.back().end = span.end;
    } else {
      joined.push_back(span);
    }
    previous_match = span.match;
  }
  return joined;
}

std::vector<Span> JoinedWithNext(const std::vector<Span>& spans) {
  std::vector<Span> joined;
  bool previous_match = false;
  for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
    if (span->match && !previous_match && !joined.empty()) {
      joined.back().begin = span->begin;
    } else {
      joined.push_back(*span);
    }
    previous_match = span->match;
  }
  std::reverse(joined.begin(), joined.end());
  return joined;
}

std::vector<Span> Apply(Behavior behavior, std::vector<Span> spans) {
  switch (behavior) {
    case Behavior::kRemoved:
      std::erase_if(spans, [](const Span& span) { return span.match; });
      return spans;
    case Behavior::kIsolated:
      return spans;
    case Behavior::kMergedWithNext:
      return JoinedWithNext(spans);
    case Behavior::kMergedWithPrevious:
    case Behavior::kContiguous:
      return Joined(spans, behavior);
  }
  return spans;  // not reached
}

// Cuts around matches; `next()` gives them in order, at last nothing.
template <typename NextMatch>
void SplitAround(std::string_view text, Behavior behavior, bool invert, Pieces& out, NextMatch next) {
  std::vector<Span> spans;
  size_t done = 0;
  while (const std::optional<PatternMatch> match = next()) {
    if (match->begin > done) spans.push_back({done, match->begin, invert});
    spans.push_back({match->begin, match->end, !invert});
    done = match->end;
  }
  if (done < text.size()) spans.push_back({done, text.size(), invert});
  for (const Span& span : Apply(behavior, std::move(spans))) {
    if (span.end > span.begin) out.views.push_back(text.substr(span.begin, span.end - span.begin));
  }
}

template <typename End>
void ScanPieces(std::string_view text, Pieces& out, End end_of_piece) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = end_of_piece(text, begin);
    out.views.push_back(text.substr(begin, end - begin));
    begin = end;
  }
}

class KnownSplit : public SplitStep {
 public:
  explicit KnownSplit(EndOfPiece end_of_piece) : end_of_piece_(end_of_piece) {}
  void Split(std::string_view piece, bool at_start, Pieces& out) const override {
    ScanPieces(piece, out, end_of_piece_);
  }
  LetterNewline AtLetterNewline() const override { return LetterNewline::kCuts; }

 private:
  EndOfPiece end_of_piece_;
};

class DigitsSplit : public SplitStep {
 public:
  explicit DigitsSplit(bool individual) : individual_(individual) {}
  void Split(std::string_view piece, bool at_start, Pieces& out) const override {
    ScanPieces(piece, out, [this](std::string_view text, size_t begin) {
      const Character first = CharacterAt(text, begin);
      const bool digit = (first.classes & kDigit) != 0;
      if (digit && individual_) return begin + first.bytes;
      size_t at = begin;
      for (Character c = first; c.bytes != 0 && ((c.classes & kDigit) != 0) == digit; c = CharacterAt(text, at)) {
        at += c.bytes;
      }
      return at;
    });
  }
  LetterNewline AtLetterNewline() const override { return LetterNewline::kIndifferent; }

 private:
  bool individual_;
};

class LiteralSplit : public SplitStep {
 public:
  LiteralSplit(std::string literal, Behavior behavior, bool invert)
      : literal_(std::move(literal)), behavior_(behavior), invert_(invert) {}
  void Split(std::string_view piece, bool at_start, Pieces& out) const override {
    size_t from = 0;
    SplitAround(piece, behavior_, invert_, out, [&]() -> std::optional<PatternMatch> {
      const size_t at = piece.find(literal_, from);
      if (at == std::string_view::npos) return std::nullopt;
      from = at + literal_.size();
      return PatternMatch{at, from};
    });
  }
  // A run of matches may be longer than one, and what is between matches may be joined.
  LetterNewline AtLetterNewline() const override {
    const bool elsewhere =
        std::none_of(literal_.begin(), literal_.end(), [](char c) { return c == '\n' || IsAsciiLetter(c); });
    return elsewhere ? LetterNewline::kIndifferent : LetterNewline::kUnknown;
  }

 private:
  std::string literal_;
  Behavior behavior_;
  bool invert_;
};

class PatternSplit : public SplitStep {
 public:
  PatternSplit(const JsonPlace& pattern, Behavior behavior, bool invert)
      : pattern_(pattern), behavior_(behavior), invert_(invert) {}
  void Split(std::string_view piece, bool at_start, Pieces& out) const override {
    Pattern::Search search(pattern_, piece);
    SplitAround(piece, behavior_, invert_, out, [&] { return search.Next(); });
  }
  LetterNewline AtLetterNewline() const override { return LetterNewline::kUnknown; }

 private:
  Pattern pattern_;
  Behavior behavior_;
  bool invert_;
};

// Spaces become a visible character, which may also be put in front of a text; perhaps each of them begins a piece.
class MetaspaceSplit : public SplitStep {
 public:
  enum class Prepend { kFirst, kAlways, kNever };
  MetaspaceSplit(std::string space, Prepend prepend, bool split)
      : space_(std::move(space)), prepend_(prepend), split_(split) {}

  void Split(std::string_view piece, bool at_start, Pieces& out) const override {
    std::string& text = out.made.emplace_back();
    text.reserve(piece.size() + piece.size() / 2 + space_.size());
    const bool prefix = prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && at_start);
    if (prefix && piece.front() != ' ' && !piece.starts_with(space_)) text += space_;
    for (const char c : piece) {
      if (c == ' ') {
        text += space_;
      } else {
        text += c;
      }
    }
    if (!split_) {
      out.views.emplace_back(text);
      return;
    }
    ScanPieces(text, out, [this](std::string_view all, size_t begin) {
      const size_t next = all.find(space_, begin + 1);
      return next == std::string_view::npos ? all.size() : next;
    });
  }
  LetterNewline AtLetterNewline() const override { return LetterNewline::kIndifferent; }
  bool prepends() const override { return prepend_ != Prepend::kNever; }

 private:
  std::string space_;
  Prepend prepend_;
  bool split_;
};

// The ByteLevel member: perhaps a space in front of each piece, perhaps GPT-2's pattern. Its mapping of bytes to
// letters happens in the merges, which work on bytes.
class ByteLevelSplit : public SplitStep {
 public:
  ByteLevelSplit(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space), use_regex_(use_regex) {}
  void Split(std::string_view piece, bool at_start, Pieces& out) const override {
    if (add_prefix_space_ && piece.front() != ' ') piece = out.made.emplace_back(" " + std::string(piece));
    if (use_regex_) {
      ScanPieces(piece, out, EndOfGpt2Piece);
    } else {
      out.views.push_back(piece);
    }
  }
  LetterNewline AtLetterNewline() const override {
    return use_regex_ ? LetterNewline::kCuts : LetterNewline::kIndifferent;
  }
  bool prepends() const override { return add_prefix_space_; }

 private:
  bool add_prefix_space_;
  bool use_regex_;
};

Behavior ParseBehavior(const JsonPlace& place) {
  const std::string behavior = place.String();
  if (behavior == "Removed") return Behavior::kRemoved;
  if (behavior == "Isolated") return Behavior::kIsolated;
  if (behavior == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (behavior == "MergedWithNext") return Behavior::kMergedWithNext;
  if (behavior == "Contiguous") return Behavior::kContiguous;
  place.Fail(fmt::format("{} is {}; Removed, Isolated, MergedWithPrevious, MergedWithNext and Contiguous are known",
                         place.path(), behavior));
}

std::unique_ptr<SplitStep> ParseSplit(const JsonPlace& place) {
  const Behavior behavior = ParseBehavior(place.At("behavior"));
  const bool invert = place.BoolOr("invert", false);
  const JsonPlace pattern = place.At("pattern");
  if (const auto literal = pattern.Find("String")) {
    if (literal->String().empty()) literal->Fail(literal->path() + " is empty; Split needs something to look for");
    return std::make_unique<LiteralSplit>(literal->String(), behavior, invert);
  }
  const JsonPlace regex = pattern.At("Regex");
  // A known pattern matches everything, so these give its matches one by one.
  const bool every_match = behavior == Behavior::kIsolated || (behavior == Behavior::kRemoved && invert);
  if (const EndOfPiece known = FindKnownPattern(regex.String()); known != nullptr && every_match) {
    return std::make_unique<KnownSplit>(known);
  }
  return std::make_unique<PatternSplit>(regex, behavior, invert);
}

std::unique_ptr<SplitStep> ParseMetaspace(const JsonPlace& place) {
  const JsonPlace replacement = place.At("replacement");
  const std::string space = replacement.String();
  if (space.empty() || CharacterAt(space, 0).bytes != space.size()) {
    replacement.Fail(fmt::format("{} is \"{}\"; one character is needed", replacement.path(), space));
  }
  const std::string scheme = place.StringOr("prepend_scheme", "always");
  auto prepend = MetaspaceSplit::Prepend::kAlways;
  if (scheme == "first") {
    prepend = MetaspaceSplit::Prepend::kFirst;
  } else if (scheme == "never") {
    prepend = MetaspaceSplit::Prepend::kNever;
  } else if (scheme != "always") {
    place.Fail(fmt::format("{}.prepend_scheme is {}; first, always and never are known", place.path(), scheme));
  }
  if (!place.BoolOr("add_prefix_space", true) && prepend != MetaspaceSplit::Prepend::kNever) {
    place.Fail(fmt::format("{} has add_prefix_space: false and prepend_scheme: {}, which contradict each other",
                           place.path(), scheme));
  }
  return std::make_unique<MetaspaceSplit>(space, prepend, place.BoolOr("split", true));
}

void ParseInto(const JsonPlace& place, bool& byte_level, std::vector<std::unique_ptr<SplitStep>>& steps) {
  const std::string type = place.Type();
  if (byte_level) {
    place.Fail(fmt::format("the pre_tokenizer {} ({}) stands behind ByteLevel; ByteLevel must be the last", type,
                           place.path()));
  }
  if (type == "Sequence") {
    for (const JsonPlace& member : place.At("pretokenizers").Elements()) ParseInto(member, byte_level, steps);
  } else if (type == "ByteLevel") {
    byte_level = true;
    steps.push_back(
        std::make_unique<ByteLevelSplit>(place.BoolOr("add_prefix_space", true), place.BoolOr("use_regex", true)));
  } else if (type == "Split") {
    steps.push_back(ParseSplit(place));
  } else if (type == "Digits") {
    steps.push_back(std::make_unique<DigitsSplit>(place.BoolOr("individual_digits", false)));
  } else if (type == "Metaspace") {
    const auto is_metaspace = [](const auto& step) { return dynamic_cast<MetaspaceSplit*>(step.get()) != nullptr; };
    if (std::any_of(steps.begin(), steps.end(), is_metaspace)) {
      place.Fail(fmt::format("the pre_tokenizer Metaspace stands twice, again at {}", place.path()));
    }
    steps.push_back(ParseMetaspace(place));
  } else {
    place.Fail(
        fmt::format("the pre_tokenizer {} ({}) is not supported; ByteLevel, Metaspace, Split, Digits and Sequence are",
                    type, place.path()));
  }
}

}  // namespace

PreTokenizer PreTokenizer::Parse(const std::optional<JsonPlace>& description) {
  PreTokenizer result;
  if (description) ParseInto(*description, result.byte_level_, result.steps_);
  return result;
}

void PreTokenizer::Split(std::string_view text, bool at_start, Pieces& out) const {
  out.views.clear();
  out.made.clear();
  if (text.empty()) return;
  out.views.push_back(text);
  for (const std::unique_ptr<SplitStep>& step : steps_) {
    out.coarse.swap(out.views);
    out.views.clear();
    for (const std::string_view piece : out.coarse) {
      step->Split(piece, at_start && piece.data() == text.data(), out);
    }
  }
}

bool PreTokenizer::prepends() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const auto& step) { return step->prepends(); });
}

bool PreTokenizer::CutsBeforeNewline() const {
  return AllowsCutBeforeNewline() && std::any_of(steps_.begin(), steps_.end(), [](const auto& step) {
           return step->AtLetterNewline() == SplitStep::LetterNewline::kCuts;
         });
}

bool PreTokenizer::AllowsCutBeforeNewline() const {
  return std::none_of(steps_.begin(), steps_.end(),
                      [](const auto& step) { return step->AtLetterNewline() == SplitStep::LetterNewline::kUnknown; });
}

}  // namespace longspan::trainer
