#include "worker/trainer/data/byte_letters.h"

#include "worker/trainer/data/text_normalization.h"
#include "worker/trainer/data/unicode_classes.h"

namespace longspan::trainer {
namespace {

constexpr uint32_t kLettersEnd = 0x100 + 68;

std::array<uint32_t, 256> MakeByteLetters() {
  std::array<uint32_t, 256> letters{};
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    letters[byte] = printable ? byte : next++;
  }
  return letters;
}

// Byte by letter; -1 for what is no byte letter.
std::array<int16_t, kLettersEnd> MakeBytes() {
  std::array<int16_t, kLettersEnd> bytes{};
  bytes.fill(-1);
  const auto& letters = ByteLetters();
  for (size_t byte = 0; byte < letters.size(); ++byte) bytes[letters[byte]] = static_cast<int16_t>(byte);
  return bytes;
}

}  // namespace

const std::array<uint32_t, 256>& ByteLetters() {
  static const std::array<uint32_t, 256> letters = MakeByteLetters();
  return letters;
}

std::string ByteLetterText(uint8_t byte) {
  std::string text;
  AppendUtf8(ByteLetters()[byte], text);
  return text;
}

std::optional<std::string> BytesOfLetters(std::string_view text) {
  static const std::array<int16_t, kLettersEnd> bytes = MakeBytes();
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const Character c = CharacterAt(text, at);
    if (c.code_point >= kLettersEnd || bytes[c.code_point] < 0) return std::nullopt;
    result += static_cast<char>(bytes[c.code_point]);
    at += c.bytes;
  }
  return result;
}

}  // namespace longspan::trainer
