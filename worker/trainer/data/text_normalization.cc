#include "worker/trainer/data/text_normalization.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <new>
#include <vector>

#include "proto/support/check.h"
#include "worker/trainer/data/unicode_classes.h"

namespace longspan::trainer {
namespace {

struct CodePointRange {
  uint32_t first;
  uint32_t last;
};
struct LowerCaseRun {  // first, first + step, ..., last
  uint32_t first;
  uint32_t last;
  uint32_t step;
  int32_t distance;
};
#include "worker/trainer/data/normalization_classes.inc"

constexpr uint32_t kCodePoints = 0x110000;
constexpr uint32_t kCapitalIWithDot = 0x130;  // the one letter whose lower case is two characters

enum Trait : uint8_t {
  // Normalising to this form may change the character, or move it, or join it with the one before. Before any other
  // character a text can be cut and its parts normalised apart.
  kChangesNfc = 1,
  kChangesNfd = 2,
  kChangesNfkc = 4,
  kChangesNfkd = 8,
  kJoinsNext = 16,  // what follows may change it: it is the first of a pair that composes, or composed itself
  kMark = 32,
  kWord = 64,
};

template <size_t N>
void Set(const CodePointRange (&ranges)[N], Trait bit, std::vector<uint8_t>& traits) {
  for (const CodePointRange& range : ranges) {
    for (uint32_t c = range.first; c <= range.last; ++c) traits[c] |= bit;
  }
}

std::vector<uint8_t> MakeTraits() {
  std::vector<uint8_t> traits(kCodePoints, 0);
  Set(kNfcChanges, kChangesNfc, traits);
  Set(kNfdChanges, kChangesNfd, traits);
  Set(kNfkcChanges, kChangesNfkc, traits);
  Set(kNfkdChanges, kChangesNfkd, traits);
  Set(kComposesFirst, kJoinsNext, traits);
  Set(kNfdChanges, kJoinsNext, traits);
  Set(kMarks, kMark, traits);
  Set(kWords, kWord, traits);
  return traits;
}

const std::vector<uint8_t>& Traits() {
  static const std::vector<uint8_t> traits = MakeTraits();
  return traits;
}

std::vector<int32_t> MakeLowerCase() {
  std::vector<int32_t> distances(0x20000, 0);
  for (const LowerCaseRun& run : kLowerCase) {
    CHECK_LT(run.last, distances.size());
    for (uint32_t c = run.first; c <= run.last; c += run.step) distances[c] = run.distance;
  }
  return distances;
}

Trait ChangesIn(NormalizationForm form) {
  switch (form) {
    case NormalizationForm::kNfc:
      return kChangesNfc;
    case NormalizationForm::kNfd:
      return kChangesNfd;
    case NormalizationForm::kNfkc:
      return kChangesNfkc;
    case NormalizationForm::kNfkd:
      return kChangesNfkd;
  }
  return kChangesNfc;  // not reached
}

utf8proc_option_t OptionsOf(NormalizationForm form) {
  unsigned options = UTF8PROC_STABLE;
  options |=
      form == NormalizationForm::kNfc || form == NormalizationForm::kNfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalizationForm::kNfkc || form == NormalizationForm::kNfkd) options |= UTF8PROC_COMPAT;
  return static_cast<utf8proc_option_t>(options);
}

void AppendByUtf8proc(NormalizationForm form, std::string_view text, std::string& out) {
  const utf8proc_option_t options = OptionsOf(form);
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const auto size = static_cast<utf8proc_ssize_t>(text.size());
  // Long enough for all but runs of compatibility characters.
  std::vector<utf8proc_int32_t> points(text.size() + 32);
  utf8proc_ssize_t count = 0;
  for (;;) {
    count = utf8proc_decompose(bytes, size, points.data(), static_cast<utf8proc_ssize_t>(points.size()), options);
    CHECK_GE(count, 0) << "utf8proc: " << utf8proc_errmsg(count);  // The text was checked to be UTF-8.
    if (static_cast<size_t>(count) <= points.size()) break;
    points.resize(static_cast<size_t>(count));
  }
  count = utf8proc_normalize_utf32(points.data(), count, options);
  CHECK_GE(count, 0) << "utf8proc: " << utf8proc_errmsg(count);
  for (utf8proc_ssize_t i = 0; i < count; ++i) AppendUtf8(static_cast<uint32_t>(points[i]), out);
}

}  // namespace

void AppendUtf8(uint32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c);
    return;
  }
  if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
  } else {
    if (c < 0x10000) {
      out += static_cast<char>(0xE0 | c >> 12);
    } else {
      out += static_cast<char>(0xF0 | c >> 18);
      out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    }
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
  }
  out += static_cast<char>(0x80 | (c & 0x3F));
}

bool IsWordCharacter(uint32_t code_point) { return (Traits()[code_point] & kWord) != 0; }

void AppendNormalized(NormalizationForm form, std::string_view text, std::string& out) {
  const Trait changes = ChangesIn(form);
  const std::vector<uint8_t>& traits = Traits();
  size_t copied = 0;  // everything before is in `out`
  size_t last = 0;    // start of the last character that may be cut before
  uint8_t last_traits = 0;
  for (size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {  // ASCII never changes; most of it joins a mark behind it.
      last = at++;
      last_traits = kJoinsNext;
      continue;
    }
    const Character c = CharacterAt(text, at);
    if ((traits[c.code_point] & changes) == 0) {
      last = at;
      last_traits = traits[c.code_point];
      at += c.bytes;
      continue;
    }
    // From the character before, if it may join, to the next that may be cut before.
    const size_t begin = (last_traits & kJoinsNext) ? last : at;
    while (at < text.size()) {
      const Character next = CharacterAt(text, at);
      if ((traits[next.code_point] & changes) == 0) break;
      at += next.bytes;
    }
    out.append(text.substr(copied, begin - copied));
    AppendByUtf8proc(form, text.substr(begin, at - begin), out);
    copied = at;
    last_traits = 0;
  }
  out.append(text.substr(copied));
}

void AppendLowerCase(std::string_view text, std::string& out) {
  static const std::vector<int32_t> distances = MakeLowerCase();
  for (size_t at = 0; at < text.size();) {
    const Character c = CharacterAt(text, at);
    at += c.bytes;
    if (c.code_point == kCapitalIWithDot) {
      out += "i\xCC\x87";
      continue;
    }
    const int32_t distance = c.code_point < distances.size() ? distances[c.code_point] : 0;
    AppendUtf8(c.code_point + static_cast<uint32_t>(distance), out);
  }
}

void AppendWithoutMarks(std::string_view text, std::string& out) {
  for (size_t at = 0; at < text.size();) {
    const Character c = CharacterAt(text, at);
    if ((Traits()[c.code_point] & kMark) == 0) out.append(text.substr(at, c.bytes));
    at += c.bytes;
  }
}

}  // namespace longspan::trainer
