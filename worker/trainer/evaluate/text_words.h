// Text as Python sees it, as far as LongBench's scorers need: str.lower, str.split, \d+ and the \b of regular
// expressions.
//
// Pure. Bytes that are no UTF-8 count as one character each that is neither letter, digit nor white space. One thing
// differs from Python: a capital sigma at the end of a word becomes σ like any other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longspan::trainer {

std::string LowerCase(std::string_view text);
// Cut at white space; no empty words.
std::vector<std::string> SplitAtWhiteSpace(std::string_view text);
// Without the characters !"#$%&'()*+,-./:;<=>?@[\]^_`{|}~.
std::string WithoutPunctuation(std::string_view text);
// Every run of letters, digits and underscores that is one of `words` becomes one space.
std::string WithoutWords(std::string_view text, const std::vector<std::string_view>& words);
// Every run of decimal digits (of any script), as written.
std::vector<std::string> NumbersIn(std::string_view text);
// Code points; for measures over characters.
std::vector<uint32_t> CodePoints(std::string_view text);

}  // namespace longspan::trainer
