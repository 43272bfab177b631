#include "worker/trainer/data/token_decoder.h"

#include <fmt/format.h>

#include <algorithm>

#include "worker/trainer/data/byte_letters.h"
#include "worker/trainer/data/pattern.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/data/unicode_classes.h"

namespace longspan::trainer {
namespace {

using Tokens = std::vector<std::string>;

Tokens Joined(const Tokens& tokens) {
  std::string all;
  for (const std::string& token : tokens) all += token;
  return {std::move(all)};
}

class ByteLevelDecode : public DecodeStep {
 public:
  Tokens Decode(Tokens tokens) const override {
    // A token with other letters than byte letters is text as it is.
    for (std::string& token : tokens) token = BytesOfLetters(token).value_or(token);
    Tokens joined = Joined(tokens);
    return {ReplaceInvalidUtf8(joined[0])};
  }
};

// Tokens `<0x00>` to `<0xFF>` in a row become the text of their bytes, or one U+FFFD each when that is not UTF-8.
class ByteFallbackDecode : public DecodeStep {
 public:
  Tokens Decode(Tokens tokens) const override {
    Tokens result;
    std::string bytes;
    const auto flush = [&] {
      if (bytes.empty()) return;
      if (!FindInvalidUtf8(bytes)) {
        result.push_back(bytes);
      } else {
        result.insert(result.end(), bytes.size(), "\xEF\xBF\xBD");
      }
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const auto byte = ByteOf(token)) {
        bytes += static_cast<char>(*byte);
        continue;
      }
      flush();
      result.push_back(std::move(token));
    }
    flush();
    return result;
  }

 private:
  static int HexDigit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  }
  static std::optional<uint8_t> ByteOf(const std::string& token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
    const int low = HexDigit(token[4]);
    if (token[3] == '+' && low >= 0) return static_cast<uint8_t>(low);  // The package reads a sign, too.
    const int high = HexDigit(token[3]);
    if (high < 0 || low < 0) return std::nullopt;
    return static_cast<uint8_t>(16 * high + low);
  }
};

std::string Replaced(const std::string& text, const std::string& literal, const std::string& content) {
  std::string result;
  for (size_t at = 0;;) {
    const size_t found = text.find(literal, at);
    result.append(text, at, found - at);
    if (found == std::string::npos) return result;
    result += content;
    at = found + literal.size();
  }
}

class FuseDecode : public DecodeStep {
 public:
  Tokens Decode(Tokens tokens) const override { return Joined(tokens); }
};

class ReplaceDecode : public DecodeStep {
 public:
  ReplaceDecode(std::string literal, std::string content)
      : literal_(std::move(literal)), content_(std::move(content)) {}
  Tokens Decode(Tokens tokens) const override {
    for (std::string& token : tokens) token = Replaced(token, literal_, content_);
    return tokens;
  }

 private:
  std::string literal_;
  std::string content_;
};

// Takes up to `start` and `stop` times the character away from the ends of each text.
class StripDecode : public DecodeStep {
 public:
  StripDecode(std::string content, uint64_t start, uint64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  Tokens Decode(Tokens tokens) const override {
    for (std::string& token : tokens) {
      for (uint64_t i = 0; i < start_ && token.starts_with(content_); ++i) token.erase(0, content_.size());
      for (uint64_t i = 0; i < stop_ && token.ends_with(content_); ++i) token.resize(token.size() - content_.size());
    }
    return tokens;
  }

 private:
  std::string content_;
  uint64_t start_;
  uint64_t stop_;
};

class MetaspaceDecode : public DecodeStep {
 public:
  MetaspaceDecode(std::string space, bool drops_first) : space_(std::move(space)), drops_first_(drops_first) {}
  Tokens Decode(Tokens tokens) const override {
    bool first = true;
    for (std::string& token : tokens) {
      token = Replaced(token, space_, first && drops_first_ ? "" : " ");
      first = false;
    }
    return tokens;
  }

 private:
  std::string space_;
  bool drops_first_;
};

std::string OneCharacter(const JsonPlace& place) {
  std::string text = place.String();
  if (text.empty() || CharacterAt(text, 0).bytes != text.size()) {
    place.Fail(fmt::format("{} is \"{}\"; one character is needed", place.path(), text));
  }
  return text;
}

std::unique_ptr<DecodeStep> ParseReplace(const JsonPlace& place) {
  const JsonPlace pattern = place.At("pattern");
  const auto literal = pattern.Find("String");
  if (!literal) pattern.Fail(pattern.path() + " is no String; a decoder that replaces by a Regex is not supported");
  if (literal->String().empty()) literal->Fail(literal->path() + " is empty; Replace needs something to look for");
  return std::make_unique<ReplaceDecode>(literal->String(), place.At("content").String());
}

void ParseInto(const JsonPlace& place, std::vector<std::unique_ptr<DecodeStep>>& steps) {
  constexpr uint64_t kStripsMax = 1u << 20;
  const std::string type = place.Type();
  if (type == "Sequence") {
    for (const JsonPlace& member : place.At("decoders").Elements()) ParseInto(member, steps);
  } else if (type == "ByteLevel") {
    steps.push_back(std::make_unique<ByteLevelDecode>());
  } else if (type == "ByteFallback") {
    steps.push_back(std::make_unique<ByteFallbackDecode>());
  } else if (type == "Fuse") {
    steps.push_back(std::make_unique<FuseDecode>());
  } else if (type == "Replace") {
    steps.push_back(ParseReplace(place));
  } else if (type == "Strip") {
    steps.push_back(std::make_unique<StripDecode>(OneCharacter(place.At("content")),
                                                  place.At("start").Unsigned(kStripsMax),
                                                  place.At("stop").Unsigned(kStripsMax)));
  } else if (type == "Metaspace") {
    const bool prepends =
        place.BoolOr("add_prefix_space", true) && place.StringOr("prepend_scheme", "always") != "never";
    steps.push_back(std::make_unique<MetaspaceDecode>(OneCharacter(place.At("replacement")), prepends));
  } else {
    place.Fail(
        fmt::format("the decoder {} ({}) is not supported; ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip "
                    "and Sequence are",
                    type, place.path()));
  }
}

}  // namespace

TokenDecoder TokenDecoder::Parse(const std::optional<JsonPlace>& description) {
  TokenDecoder result;
  if (!description) return result;
  result.spaced_ = false;
  ParseInto(*description, result.steps_);
  return result;
}

std::string TokenDecoder::Decode(std::vector<std::string> tokens) const {
  for (const std::unique_ptr<DecodeStep>& step : steps_) tokens = step->Decode(std::move(tokens));
  std::string text;
  for (const std::string& token : tokens) {
    if (spaced_ && &token != tokens.data()) text += ' ';
    text += token;
  }
  return text;
}

}  // namespace longspan::trainer
