// Corpora as they are found: every byte of them is read as it stands, or refused with its place.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/trainer/data/corpus_fixture.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kMark[] = "\xEF\xBB\xBF";

class OddCorporaTest : public CorpusTest {
 protected:
  std::vector<int64_t> TokensOf(const fs::path& source) const {
    const std::string bytes = Read(Prepare(Options({source})).folder / "tokens.bin");
    const auto* ids = reinterpret_cast<const uint16_t*>(bytes.data());
    return {ids, ids + bytes.size() / 2};
  }
  static std::vector<int64_t> Documents(const std::vector<std::string>& texts) {
    const Tokenizer tokenizer = Tokenizer::Load(TinyModel());
    std::vector<int64_t> tokens;
    for (const std::string& text : texts) {
      const auto ids = tokenizer.Encode(text, true);
      tokens.insert(tokens.end(), ids.begin(), ids.end());
      tokens.push_back(*tokenizer.eos());
    }
    return tokens;
  }
};

TEST_F(OddCorporaTest, AByteOrderMarkIsDroppedBeforeATextOrRecordAndKeptInside) {
  const std::string text = "In the beginning " + std::string(kMark) + " God";
  EXPECT_EQ(TokensOf(Write("a.txt", kMark + text)), Documents({text}));
  const std::string record = nlohmann::json({{"text", text}}).dump();
  EXPECT_EQ(TokensOf(Write("a.jsonl", kMark + record + "\n" + record)), Documents({text, text}));
  EXPECT_EQ(TokensOf(Write("a.json", kMark + ("[" + record + "]"))), Documents({text}));
  // Files that were joined.
  EXPECT_EQ(TokensOf(Write("b.jsonl", record + "\n" + kMark + record)), Documents({text, text}));
  EXPECT_THAT(Refusal(Options({Write("only.txt", kMark)})), HasSubstr("the corpus is empty"));
}

TEST_F(OddCorporaTest, CarriageReturnsEndLinesOfRecordsAndStayInTexts) {
  const std::string text = "one line of text\r\nand another\r\n";
  EXPECT_EQ(TokensOf(Write("a.txt", text)), Documents({text}));
  EXPECT_EQ(TokensOf(Write("a.jsonl", "{\"text\": \"one line\"}\r\n\r\n \t\r\n{\"text\": \"another line\"}\r")),
            Documents({"one line", "another line"}));
  EXPECT_EQ(TokensOf(Write("a.json", "[\r\n{\"text\": \"one line\"}\r\n,\r\n{\"text\": \"another line\"}\r\n]\r\n")),
            Documents({"one line", "another line"}));
}

TEST_F(OddCorporaTest, NulBytesAreTextWhereJsonAllowsThem) {
  const std::string text("nul \0 and \0\0 more words", 23);
  EXPECT_EQ(TokensOf(Write("a.txt", text)), Documents({text}));
  EXPECT_EQ(TokensOf(Write("a.jsonl", R"({"text": "nul \u0000 and \u0000\u0000 more words"})")), Documents({text}));
  EXPECT_THAT(Refusal(Options({Write("b.jsonl", std::string("{\"text\": \"a\0b\"}", 15))})),
              HasSubstr("b.jsonl line 1: it is not JSON"));
  EXPECT_THAT(Refusal(Options({Write("c.jsonl", std::string("{\"text\": \"a\"}\n\0\0\0", 16))})),
              HasSubstr("c.jsonl line 2: it is not JSON"));
  EXPECT_THAT(Refusal(Options({Write("d.json", std::string("[{\"text\": \"a\"}\0]", 16))})),
              HasSubstr("d.json line 1: a comma is missing"));
}

TEST_F(OddCorporaTest, EmptyRecordsAreCountedAndEmptyObjectsRefused) {
  EXPECT_EQ(TokensOf(Write("a.jsonl", "\n{\"text\": \"\"}\n\n{\"text\": \"some words of text\"}\n\n")),
            Documents({"some words of text"}));
  EXPECT_THAT(Refusal(Options({Write("b.jsonl", "{\"text\": \"a\"}\n{}\n")})),
              HasSubstr("b.jsonl line 2: \"text\" is"));
  EXPECT_THAT(Refusal(Options({Write("c.jsonl", "null\n")})), HasSubstr("a JSON null stands where"));
  EXPECT_THAT(Refusal(Options({Write("d.json", "[]")})), HasSubstr("the corpus is empty"));
  EXPECT_THAT(Refusal(Options({Write("e.json", "")})), HasSubstr("the corpus is empty"));
  EXPECT_THAT(Refusal(Options({Write("f.json", "[\n[]]")})), HasSubstr("f.json line 2: a JSON array stands"));
}

TEST_F(OddCorporaTest, DuplicateKeysAreNoGuess) {
  EXPECT_THAT(Refusal(Options({Write("a.jsonl", R"({"text": "a", "text": "b"})")})),
              HasSubstr("a.jsonl line 1: the key \"text\" stands twice in one object"));
  EXPECT_THAT(Refusal(Options({Write("b.jsonl", R"({"text": "a", "meta": {"x": 1, "x": 2}})")})), HasSubstr("\"x\""));
  EXPECT_EQ(TokensOf(Write("c.jsonl", R"({"text": "many words of text", "a": {"x": 1}, "b": {"x": 2}})")),
            Documents({"many words of text"}));
}

TEST_F(OddCorporaTest, DeepNestingIsRefusedBeforeItCanHurt) {
  const std::string deep(1 << 20, '[');
  EXPECT_THAT(Refusal(Options({Write("a.jsonl", deep)})), HasSubstr("a.jsonl line 1: it is nested deeper than 64"));
  EXPECT_THAT(Refusal(Options({Write("b.jsonl", R"({"text": "a", "x": )" + deep)})), HasSubstr("nested deeper"));
  EXPECT_THAT(Refusal(Options({Write("c.json", deep)})), AllOf(HasSubstr("c.json line 1"), HasSubstr("not closed")));
}

TEST_F(OddCorporaTest, NumbersBeyondADoubleAndHalfCharactersAreRefused) {
  EXPECT_THAT(Refusal(Options({Write("a.jsonl", R"({"text": "a", "n": 1e999})")})), HasSubstr("it is not JSON"));
  EXPECT_THAT(Refusal(Options({Write("b.jsonl", R"({"text": "\udc00"})")})), HasSubstr("it is not JSON"));
  EXPECT_THAT(Refusal(Options({Write("c.json", "[{\"text\": \"\xF0\x9F\"}]")})),
              HasSubstr("c.json line 1: byte 11 (0xf0) is not UTF-8"));
}

TEST_F(OddCorporaTest, ALineOfAHundredMegabytesIsOneDocument) {
  std::string text;
  while (text.size() < 100'000'000) text += "lightlightlightlightlightlight ";
  const int64_t words = static_cast<int64_t>(text.size() / 31);
  auto options = Options({Write("a.jsonl", "{\"text\": \"" + text + "\"}\n{\"text\": \"b\"}\n")});
  options.format = jobfile::DataFormat::kText;  // known, so that the line is not looked at twice
  const auto lines = Prepare(options);
  EXPECT_EQ(lines.documents, 2);
  EXPECT_GT(lines.tokens, words);
}

}  // namespace
}  // namespace longspan::trainer
