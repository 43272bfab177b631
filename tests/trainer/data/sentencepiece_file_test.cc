// Damaged tokenizer.model files that libsentencepiece does not survive: refused before it sees them, or when it throws.
#include <gmock/gmock.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "tests/trainer/data/corpus_fixture.h"
#include "worker/trainer/data/sentencepiece_charsmap.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {
namespace {

using ::testing::HasSubstr;

// A field of a protobuf message that holds bytes. Shorter than 16,384 bytes.
std::string Field(int number, const std::string& value) {
  std::string field(1, static_cast<char>(number << 3 | 2));
  field += static_cast<char>((value.size() & 0x7F) | 0x80);
  field += static_cast<char>(value.size() >> 7);
  return field + value;
}

std::string Piece(const std::string& text, char type) {
  return Field(1, Field(1, text) + std::string(1, 3 << 3) + std::string(1, type));
}

// Rewrites "A" to "b".
struct Charsmap {
  std::vector<uint32_t> units = std::vector<uint32_t>(256);
  std::string texts = std::string("b\0", 2);

  Charsmap() {
    units[0] = 1 << 10;                    // its children are at 0 ^ 1 ^ byte
    units[0x40] = 'A' | 1 << 8 | 2 << 10;  // the end of a key: its value is at 0x40 ^ 2
    units[0x42] = uint32_t{1} << 31;       // the text at 0
  }
  std::string Bytes() const {
    const auto bytes = static_cast<uint32_t>(units.size() * sizeof(uint32_t));
    std::string all(sizeof bytes + bytes, '\0');
    std::memcpy(all.data(), &bytes, sizeof bytes);
    std::memcpy(all.data() + sizeof bytes, units.data(), bytes);
    return all + texts;
  }
};

class SentencePieceFileTest : public CorpusTest {
 protected:
  // The ids of `text`, or why the file is refused.
  std::string Encoded(const std::string& model, const std::string& text) {
    const std::filesystem::path folder = Write("tokenizer.model", model).parent_path();
    try {
      std::string ids;
      for (const TokenId id : Tokenizer::Load(folder).Encode(text, false)) ids += std::to_string(id) + " ";
      return ids;
    } catch (const UserError& error) {
      return error.what();
    }
  }
  static std::string Model(const std::string& charsmap) {
    return Piece("<unk>", 2) + Piece("\xE2\x96\x81", 1) + Piece("b", 1) + Field(3, Field(2, charsmap));
  }
};

TEST_F(SentencePieceFileTest, AnEmptyPieceIsRefused) {
  EXPECT_THAT(Encoded(Model("") + Piece("", 1), "b"), HasSubstr("tokenizer.model: it is not a sentencepiece model"));
}

TEST_F(SentencePieceFileTest, CharacterRulesStayInside) {
  EXPECT_EQ(Encoded(Model(Charsmap().Bytes()), "A"), "1 2 ");
  Charsmap step;
  step.units[0] = 300 << 10;
  EXPECT_THAT(Encoded(Model(step.Bytes()), "A"), HasSubstr("precompiled_charsmap points outside of itself"));
}

TEST(StaysInside, LooksAtEveryStepAndValue) {
  EXPECT_TRUE(StaysInside(""));
  EXPECT_TRUE(StaysInside(Charsmap().Bytes()));
  const auto changed = [](auto change) {
    Charsmap charsmap;
    change(charsmap);
    return StaysInside(charsmap.Bytes());
  };
  EXPECT_FALSE(changed([](Charsmap& map) { map.units[0] = uint32_t{1} << 31 | 300 << 10; })) << "the root always steps";
  EXPECT_FALSE(changed([](Charsmap& map) { map.units[0x40] = 'A' | 1 << 8 | 300 << 10; }));
  EXPECT_FALSE(changed([](Charsmap& map) { map.units[0x42] = uint32_t{1} << 31 | 2; })) << "behind the last text";
  EXPECT_FALSE(changed([](Charsmap& map) { map.texts = "b"; })) << "a text without an end";
  EXPECT_FALSE(changed([](Charsmap& map) { map.texts = ""; }));
  EXPECT_FALSE(changed([](Charsmap& map) { map.units.resize(255); })) << "a part of a block";
  EXPECT_FALSE(StaysInside("abc"));
  EXPECT_FALSE(StaysInside(Charsmap().Bytes().substr(0, 600)));
}

}  // namespace
}  // namespace longspan::trainer
