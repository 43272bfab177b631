#include "worker/trainer/data/record_example.h"

#include <fmt/format.h>

#include <string_view>
#include <vector>

namespace longspan::trainer {
namespace {

constexpr size_t kPartBytesMax = 500;
constexpr size_t kPartsMax = 6;
constexpr size_t kPartLinesMax = 12;
constexpr const char* kMore = "more";

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

// A control character would act on a terminal instead of being seen: as the picture that Unicode has for it (U+2400 +
// c), those behind ASCII as U+FFFD. Tabs stay.
std::string Visible(std::string_view line) {
  std::string text;
  for (size_t i = 0; i < line.size(); ++i) {
    const auto c = static_cast<unsigned char>(line[i]);
    const bool behind_ascii =
        c == 0xC2 && i + 1 < line.size() && static_cast<unsigned char>(line[i + 1]) < 0xA0;  // U+0080 to U+009F
    if (behind_ascii) {
      text += "\xEF\xBF\xBD";
      ++i;
    } else if ((c < 0x20 && c != '\t') || c == 0x7F) {
      text += "\xE2\x90";
      text += static_cast<char>(0x80 + (c == 0x7F ? 0x21 : c));
    } else {
      text += line[i];
    }
  }
  return text;
}

std::vector<std::string_view> LinesOf(std::string_view text) {
  std::vector<std::string_view> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

size_t CountParts(const Rendering& rendering) {
  size_t count = rendering.parts.empty() ? 0 : 1;
  for (size_t i = 1; i < rendering.parts.size(); ++i) {
    count += rendering.parts[i].scored != rendering.parts[i - 1].scored ? 1 : 0;
  }
  return count;
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
  if (const size_t count = CountParts(rendering); count > kPartsMax) {
    example.push_back({{"part", kMore}, {"text", fmt::format("[... {} further parts ...]", count - kPartsMax)}});
  }
  return example;
}

std::string ExampleLines(const nlohmann::json& example) {
  std::string lines;
  if (!example.is_array()) return lines;
  for (const nlohmann::json& entry : example) {
    if (!entry.is_object() || !entry.contains("part") || !entry.contains("text")) return "";
    const auto part = entry["part"].get<std::string>();
    const auto text = entry["text"].get<std::string>();
    const std::vector<std::string_view> all = LinesOf(text);
    const size_t left_out = all.size() > kPartLinesMax ? all.size() - kPartLinesMax : 0;
    for (size_t i = 0; i < all.size(); ++i) {
      if (left_out > 0 && i == kPartLinesMax / 2) {
        lines += fmt::format("{:<6} | [... {} lines ...]\n", part, left_out);
        i += left_out;
      }
      lines += fmt::format("{:<6} | {}\n", part, Visible(all[i]));
    }
  }
  return lines;
}

}  // namespace longspan::trainer
