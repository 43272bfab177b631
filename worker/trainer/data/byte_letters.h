// Byte-level vocabularies write bytes as printable letters: printable Latin-1 as itself, the other 68 as U+0100 onward
// (GPT-2's mapping).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace longspan::trainer {

// The letter of each byte.
const std::array<uint32_t, 256>& ByteLetters();
std::string ByteLetterText(uint8_t byte);

// The bytes that a text of byte letters stands for; empty when it has another letter.
std::optional<std::string> BytesOfLetters(std::string_view text);

}  // namespace longspan::trainer
