#include "worker/trainer/evaluate/text_words.h"

#include <algorithm>
#include <iterator>

#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/data/unicode_classes.h"

namespace longspan::trainer {
namespace {

// Every step-th code point from first to last has its small letter `offset` further on.
struct LowerCaseRun {
  uint32_t first, last, step;
  int32_t offset;
};
#include "worker/trainer/evaluate/python_characters.inc"

constexpr uint32_t kNoCharacter = 0x110000;  // stands for a byte that is no UTF-8

struct Letter {
  uint32_t code_point = 0;
  uint8_t classes = kOther;
  std::string_view bytes;
};

// Calls `take` with every character.
template <typename Take>
void ForCharacters(std::string_view text, Take take) {
  size_t bad = FindInvalidUtf8(text).value_or(text.size());
  size_t begin = 0;  // of the stretch that is good up to `bad`
  for (size_t offset = 0; offset < text.size();) {
    if (offset == bad) {
      take(Letter{kNoCharacter, kOther, text.substr(offset, 1)});
      begin = ++offset;
      const auto next = FindInvalidUtf8(text.substr(begin));
      bad = next ? begin + *next : text.size();
      continue;
    }
    const Character character = CharacterAt(text, offset);
    take(Letter{character.code_point, character.classes, text.substr(offset, character.bytes)});
    offset += character.bytes;
  }
}

void AppendUtf8(uint32_t code_point, std::string* out) {
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xC0 | code_point >> 6));
    out->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | code_point >> 12));
    out->push_back(static_cast<char>(0x80 | (code_point >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | code_point >> 18));
    out->push_back(static_cast<char>(0x80 | (code_point >> 12 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code_point >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  }
}

uint32_t LowerOf(uint32_t code_point) {
  if (code_point < 0x80) return code_point >= 'A' && code_point <= 'Z' ? code_point + 32 : code_point;
  const auto* run = std::lower_bound(std::begin(kLowerCaseRuns), std::end(kLowerCaseRuns), code_point,
                                     [](const LowerCaseRun& r, uint32_t c) { return r.last < c; });
  if (run == std::end(kLowerCaseRuns) || code_point < run->first || (code_point - run->first) % run->step != 0)
    return code_point;
  return static_cast<uint32_t>(static_cast<int64_t>(code_point) + run->offset);
}

// Python counts four control characters as white space that the regular expressions of tokenizers do not.
bool IsSpace(const Letter& letter) {
  return (letter.classes & kSpace) != 0 || (letter.code_point >= 0x1C && letter.code_point <= 0x1F);
}

bool IsWordCharacter(const Letter& letter) {
  return (letter.classes & (kLetter | kNumber)) != 0 || letter.code_point == '_';
}

bool IsPunctuation(uint32_t c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

bool IsDecimalDigit(const Letter& letter) {
  if (letter.code_point < 0x80) return letter.code_point >= '0' && letter.code_point <= '9';
  const auto* above = std::upper_bound(std::begin(kDecimalZeros), std::end(kDecimalZeros), letter.code_point);
  return above != std::begin(kDecimalZeros) && letter.code_point < *(above - 1) + 10;
}

}  // namespace

std::string LowerCase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  ForCharacters(text, [&out](const Letter& letter) {
    if (letter.code_point == 0x130) {  // the one capital whose small form is two characters
      AppendUtf8('i', &out);
      AppendUtf8(0x307, &out);
    } else if (letter.code_point == kNoCharacter) {
      out += letter.bytes;
    } else {
      AppendUtf8(LowerOf(letter.code_point), &out);
    }
  });
  return out;
}

std::vector<std::string> SplitAtWhiteSpace(std::string_view text) {
  std::vector<std::string> words;
  bool inside = false;
  ForCharacters(text, [&](const Letter& letter) {
    if (IsSpace(letter)) {
      inside = false;
      return;
    }
    if (!inside) words.emplace_back();
    inside = true;
    words.back() += letter.bytes;
  });
  return words;
}

std::string WithoutPunctuation(std::string_view text) {
  std::string out;
  std::copy_if(text.begin(), text.end(), std::back_inserter(out),
               [](char c) { return !IsPunctuation(static_cast<unsigned char>(c)); });
  return out;
}

std::string WithoutWords(std::string_view text, const std::vector<std::string_view>& words) {
  std::string out, run;
  const auto end_run = [&] {
    out += std::find(words.begin(), words.end(), run) != words.end() ? " " : run;
    run.clear();
  };
  ForCharacters(text, [&](const Letter& letter) {
    if (IsWordCharacter(letter)) {
      run += letter.bytes;
      return;
    }
    end_run();
    out += letter.bytes;
  });
  end_run();
  return out;
}

std::vector<std::string> NumbersIn(std::string_view text) {
  std::vector<std::string> numbers;
  bool inside = false;
  ForCharacters(text, [&](const Letter& letter) {
    const bool digit = IsDecimalDigit(letter);
    if (digit && !inside) numbers.emplace_back();
    if (digit) numbers.back() += letter.bytes;
    inside = digit;
  });
  return numbers;
}

std::vector<uint32_t> CodePoints(std::string_view text) {
  std::vector<uint32_t> code_points;
  ForCharacters(text, [&](const Letter& letter) { code_points.push_back(letter.code_point); });
  return code_points;
}

}  // namespace longspan::trainer
