// Unicode normalisation, lower case and word characters as the pinned `tokenizers` package knows them.
//
// The package normalises by tables of an older Unicode than the system's utf8proc, so what may change is decided by
// tables made from the package (normalization_classes.inc), and utf8proc, whose results for those characters are fixed
// by Unicode's stability policy, computes it. Text without such characters is copied. Pure functions of valid UTF-8;
// thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longspan::trainer {

enum class NormalizationForm { kNfc, kNfd, kNfkc, kNfkd };

// Appends the normalised text to `out`.
void AppendNormalized(NormalizationForm form, std::string_view text, std::string& out);
void AppendLowerCase(std::string_view text, std::string& out);
// Leaves the combining marks (general category M) out.
void AppendWithoutMarks(std::string_view text, std::string& out);
// `\w` as the added tokens with single_word see it.
bool IsWordCharacter(uint32_t code_point);

void AppendUtf8(uint32_t code_point, std::string& out);

}  // namespace longspan::trainer
