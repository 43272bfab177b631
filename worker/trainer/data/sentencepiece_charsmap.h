// The rules by which a sentencepiece model rewrites characters (normalizer_spec.precompiled_charsmap): a double array
// (Darts) and behind it the texts that its values point to. libsentencepiece follows both without looking where they
// lead, so a damaged file would have it read anywhere.
#pragma once

#include <string_view>

namespace longspan::trainer {

// Whether every step in the array stays inside it, and every value points to a text that ends. Empty rules do.
bool StaysInside(std::string_view charsmap);

}  // namespace longspan::trainer
