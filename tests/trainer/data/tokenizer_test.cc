// The comparison with the `tokenizers` package is tests/parity/test_tokenizer.py; here is what needs no Python.
#include "worker/trainer/data/tokenizer.h"

#include <gmock/gmock.h>

#include "tests/trainer/data/corpus_fixture.h"

namespace longspan::trainer {
namespace {

using ::testing::HasSubstr;

TEST(FindInvalidUtf8Test, NamesTheFirstByteThatIsNot) {
  EXPECT_EQ(FindInvalidUtf8("plain, \xC3\xA9, \xE4\xB8\xAD, \xF0\x9F\x98\x80, \xF4\x8F\xBF\xBF"), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("a\xFFz"), 1u);
  EXPECT_EQ(FindInvalidUtf8("ab\x80"), 2u);            // a continuation alone
  EXPECT_EQ(FindInvalidUtf8("\xC0\xAF"), 0u);          // overlong
  EXPECT_EQ(FindInvalidUtf8("\xE0\x9F\xBF"), 0u);      // overlong
  EXPECT_EQ(FindInvalidUtf8("\xED\xA0\x80"), 0u);      // a surrogate
  EXPECT_EQ(FindInvalidUtf8("\xF4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("x\xE4\xB8"), 1u);         // cut off
  EXPECT_EQ(FindInvalidUtf8("x\xE4\xB8", true), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("x\xE4z", true), 1u);
}

class TokenizerTest : public CorpusTest {};

TEST_F(TokenizerTest, TheExampleAddsBosAndKnowsEos) {
  const Tokenizer tokenizer = Tokenizer::Load(TinyModel());
  EXPECT_EQ(tokenizer.vocab_size(), 2048);
  EXPECT_EQ(tokenizer.prefix(), std::vector<TokenId>{0});
  EXPECT_TRUE(tokenizer.suffix().empty());
  EXPECT_EQ(tokenizer.eos(), 1u);
  EXPECT_TRUE(tokenizer.CanCutBeforeNewline());
  EXPECT_EQ(tokenizer.Encode("", true), std::vector<TokenId>{0});
  EXPECT_EQ(tokenizer.Encode("<s></s>", false), (std::vector<TokenId>{0, 1}));
}

TEST_F(TokenizerTest, ACutBetweenALetterAndANewlineChangesNoId) {
  const Tokenizer tokenizer = Tokenizer::Load(TinyModel());
  const std::string text = "And God said\n\n  Let there be light\n'll be\nthe end\n\n\n";
  const auto whole = tokenizer.Encode(text, false);
  for (size_t at = 1; at < text.size(); ++at) {
    if (text[at] != '\n' || !isalpha(static_cast<unsigned char>(text[at - 1]))) continue;
    auto parts = tokenizer.Encode(text.substr(0, at), false);
    const auto rest = tokenizer.Encode(text.substr(at), false);
    parts.insert(parts.end(), rest.begin(), rest.end());
    EXPECT_EQ(parts, whole) << "cut at " << at;
  }
}

TEST_F(TokenizerTest, AFullCacheForgetsButStaysRight) {
  const Tokenizer tokenizer = Tokenizer::Load(TinyModel());
  MergeCache cache;
  std::vector<TokenId> ids;
  // More different words than the cache holds.
  for (int i = 0; i < 300000; ++i) {
    ids.clear();
    tokenizer.EncodeTo("w" + std::to_string(i % 150000) + "x", cache, ids);
  }
  EXPECT_EQ(ids, tokenizer.Encode("w149999x", false));
}

TEST_F(TokenizerTest, AnEosThatIsNoTokenIsRefused) {
  Write("model/tokenizer.json", Read(TinyModel() / "tokenizer.json"));
  Write("model/tokenizer_config.json", R"({"eos_token": {"content": "<|end|>"}})");
  try {
    Tokenizer::Load(root_ / "model");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), HasSubstr("<|end|>"));
  }
  Write("model/tokenizer_config.json", "{}");
  EXPECT_EQ(Tokenizer::Load(root_ / "model").eos(), std::nullopt);
  Write("model/config.json", R"({"eos_token_id": [1, 5]})");
  EXPECT_EQ(Tokenizer::Load(root_ / "model").eos(), 1u);
}

}  // namespace
}  // namespace longspan::trainer
