// The patterns of the known model families (GPT-2 and GPT-NeoX, Llama 3, Qwen 2 to 3) as scanners written by hand over
// the Unicode tables of the pinned `tokenizers` package: faster than a regex engine, and of the right Unicode version.
// Each of them matches every character, so nothing lies between two pieces. Pure functions.
#pragma once

#include <cstddef>
#include <string_view>

namespace longspan::trainer {

// The end of the piece that starts at `begin` < text.size(); always behind `begin`. Requires UTF-8.
using EndOfPiece = size_t (*)(std::string_view text, size_t begin);

// The scanner for a pattern of a tokenizer.json; null when it is not one of the known.
EndOfPiece FindKnownPattern(std::string_view regex);
// GPT-2's, which the ByteLevel pre-tokenizer uses.
size_t EndOfGpt2Piece(std::string_view text, size_t begin);

}  // namespace longspan::trainer
