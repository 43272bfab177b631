#include "worker/trainer/data/record_example.h"

#include <fmt/format.h>

namespace longspan::trainer {
namespace {

constexpr size_t kPartBytesMax = 500;
constexpr size_t kPartsMax = 6;

bool ContinuesCharacter(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Without its middle, where it is long; never inside a character.
std::string Shortened(const std::string& text) {
  if (text.size() <= kPartBytesMax) return text;
  size_t head = kPartBytesMax / 2;
  while (head > 0 && ContinuesCharacter(text[head])) --head;
  size_t tail = text.size() - kPartBytesMax / 2;
  while (tail < text.size() && ContinuesCharacter(text[tail])) ++tail;
  return text.substr(0, head) + fmt::format(" [... {} bytes ...] ", tail - head) + text.substr(tail);
}

}  // namespace

nlohmann::json ExampleOf(const Rendering& rendering) {
  nlohmann::json example = nlohmann::json::array();
  std::string text;
  for (size_t i = 0; i < rendering.parts.size() && example.size() < kPartsMax; ++i) {
    const RenderedPart& part = rendering.parts[i];
    text += part.text;
    if (i + 1 < rendering.parts.size() && rendering.parts[i + 1].scored == part.scored) continue;
    example.push_back({{"part", part.scored ? "answer" : "prompt"}, {"text", Shortened(text)}});
    text.clear();
  }
  return example;
}

std::string ExampleLines(const nlohmann::json& example) {
  std::string lines;
  if (!example.is_array()) return lines;
  for (const nlohmann::json& entry : example) {
    if (!entry.is_object() || !entry.contains("part") || !entry.contains("text")) return "";
    const auto text = entry["text"].get<std::string>();
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      lines += fmt::format("{} | {}\n", entry["part"].get<std::string>(), text.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  return lines;
}

}  // namespace longspan::trainer
