#include "worker/trainer/generate/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/generate/end_tokens.h"

namespace longspan::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class GeneratorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::WriteTinyModel(folder_.path(), {});
    ModelOptions options;
    options.spec = testing::TinySpec(folder_.path(), 64);
    options.dropout = false;
    model_ = CausalLm::Load(options);
    testing::DrawLora(model_.get());
    for (const auto& [length, max_new_tokens] : {std::pair{3, 9}, {11, 4}, {1, 20}, {6, 1}, {4, 7}}) {
      const at::Tensor ids = testing::RandomIds(1, length, 61, length);
      prompts_.push_back({{ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + length}, max_new_tokens});
    }
  }
  // Without a cache: the whole text through Continue again for every token.
  std::vector<int64_t> Slowly(const Prompt& prompt) const {
    std::vector<int64_t> text = prompt.tokens;
    for (int64_t i = 0; i < prompt.max_new_tokens; ++i) {
      KeyValueCache cache(static_cast<int64_t>(text.size()));
      text.push_back(model_->Continue({{&cache, text}}, {}).argmax().item<int64_t>());
    }
    return {text.begin() + static_cast<int64_t>(prompt.tokens.size()), text.end()};
  }

  testing::TemporaryFolder folder_;
  std::unique_ptr<CausalLm> model_;
  std::vector<Prompt> prompts_;
};

TEST_F(GeneratorTest, EveryBatchSizeGivesTheTextsOfOneAtATime) {
  for (const int64_t batch : {1, 2, 3, 8}) {
    GenerationOptions options;
    options.batch = batch;
    std::vector<size_t> ended;
    const GenerationResult result =
        Generate(*model_, prompts_, options, {[&](size_t index, const GeneratedText&) { ended.push_back(index); }, {}});
    ASSERT_EQ(result.texts.size(), prompts_.size());
    EXPECT_THAT(ended, UnorderedElementsAre(0, 1, 2, 3, 4));
    for (size_t i = 0; i < prompts_.size(); ++i) {
      EXPECT_EQ(result.texts[i].tokens, Slowly(prompts_[i])) << "batch " << batch << ", prompt " << i;
      EXPECT_EQ(result.texts[i].end, GeneratedText::End::kLength);
    }
  }
}

TEST_F(GeneratorTest, AnEndTokenEndsTheTextAndIsNotPartOfIt) {
  const std::vector<int64_t> whole = Slowly(prompts_[0]);
  GenerationOptions options;
  options.end_ids = {whole[3], 60};
  const GenerationResult result = Generate(*model_, {prompts_[0]}, options);
  const auto first = std::find(whole.begin(), whole.end(), whole[3]);
  EXPECT_EQ(result.texts[0].tokens, std::vector<int64_t>(whole.begin(), first));
  EXPECT_EQ(result.texts[0].end, GeneratedText::End::kEndToken);
}

TEST_F(GeneratorTest, EndTokensAreHeldBackUntilEnoughTokensAreThere) {
  GenerationOptions options;
  for (int64_t id = 0; id < 61; ++id) {
    if (id != 5) options.end_ids.push_back(id);
  }
  EXPECT_THAT(Generate(*model_, {prompts_[0]}, options).texts[0].tokens, IsEmpty());
  options.min_new_tokens = 3;
  EXPECT_THAT(Generate(*model_, {prompts_[0]}, options).texts[0].tokens, ElementsAre(5, 5, 5));
}

TEST_F(GeneratorTest, AStopTextEndsTheTextAndStaysInIt) {
  const std::vector<int64_t> whole = Slowly(prompts_[2]);
  GenerationOptions options;
  options.decode = [](const std::vector<int64_t>& tokens) {
    std::string text;
    for (const int64_t token : tokens) text += "<" + std::to_string(token) + ">";
    return text;
  };
  options.stops = {"nothing like this", ">" + std::string("<") + std::to_string(whole[5]) + ">"};
  const GenerationResult result = Generate(*model_, {prompts_[2]}, options);
  EXPECT_EQ(result.texts[0].end, GeneratedText::End::kStop);
  EXPECT_EQ(result.texts[0].tokens.back(), whole[5]);
  EXPECT_LE(result.texts[0].tokens.size(), 6u);
}

TEST_F(GeneratorTest, DrawnTextsDependOnTheirNumberAlone) {
  GenerationOptions options;
  options.sampling = {1.5, 0.9, 42};
  const GenerationResult together = Generate(*model_, prompts_, options);
  for (size_t i = 0; i < prompts_.size(); ++i) {
    const GenerationResult alone = Generate(*model_, {prompts_[i]}, options, {}, i);
    EXPECT_EQ(alone.texts[0].tokens, together.texts[i].tokens) << i;
  }
  options.sampling.seed = 43;
  EXPECT_NE(Generate(*model_, prompts_, options).texts[2].tokens, together.texts[2].tokens);
}

TEST_F(GeneratorTest, StopsBetweenTwoTokensWhenAsked) {
  int steps = 0;
  const GenerationResult result = Generate(*model_, prompts_, {}, {{}, [&] { return ++steps == 4; }});
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.texts[0].tokens.size(), 3u);
}

TEST_F(GeneratorTest, EndTokensComeFromTheGenerationConfigFirst) {
  ModelConfig config;
  config.eos_token_ids = {7};
  EXPECT_THAT(EndTokensOf(folder_.path(), config), ElementsAre(7));
  const std::string path = folder_.path() + "/generation_config.json";
  testing::WriteJson(path, {{"eos_token_id", {3, 4}}});
  EXPECT_THAT(EndTokensOf(folder_.path(), config), ElementsAre(3, 4));
  testing::WriteJson(path, {{"eos_token_id", 9}});
  EXPECT_THAT(EndTokensOf(folder_.path(), config), ElementsAre(9));
  testing::WriteJson(path, {{"eos_token_id", nullptr}});
  EXPECT_THAT(EndTokensOf(folder_.path(), config), ElementsAre(7));
  testing::WriteJson(path, {{"eos_token_id", "</s>"}});
  EXPECT_THROW(EndTokensOf(folder_.path(), config), UserError);
}

}  // namespace
}  // namespace longspan::trainer
