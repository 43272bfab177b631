#include "worker/trainer/data/chat_template.h"

#include <gmock/gmock.h>

#include "tests/trainer/data/corpus_fixture.h"
#include "worker/trainer/data/record_example.h"

namespace longspan::trainer {
namespace {

using jobfile::ChatTemplate;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;

// What is scored stands in {}.
std::string Marked(const Rendering& rendering) {
  std::string text = rendering.tokenizer_prefix ? "^" : "";
  for (const RenderedPart& part : rendering.parts) text += part.scored ? "{" + part.text + "}" : part.text;
  return text;
}

std::string Marked(RecordTemplate::Options options, const SftRecord& record) {
  return Marked(RecordTemplate(std::move(options), {"<s>", "</s>"}).Render(record));
}
std::string Marked(ChatTemplate kind, const SftRecord& record) {
  RecordTemplate::Options options;
  options.kind = kind;
  return Marked(options, record);
}

const Conversation kTwoTurns{{{Role::kSystem, "Be kind."},
                              {Role::kUser, " One? "},
                              {Role::kAssistant, "1 "},
                              {Role::kUser, "Two?"},
                              {Role::kAssistant, "2"}}};
const Conversation kOneTurn{{{Role::kUser, "One?"}, {Role::kAssistant, "1"}}};

TEST(ChatTemplateTest, InstructionsAreWrittenAsLongAlpacaModelsWereTrained) {
  EXPECT_EQ(Marked(ChatTemplate::kLlama2, Instruction{"Why?", "", "So."}), "^[INST]Why?[/INST]{So.}{</s>}");
  EXPECT_EQ(Marked(ChatTemplate::kLlama2, Instruction{"Sum up.", "A book.", "So."}),
            "^[INST] <<SYS>>\nSum up.\n<</SYS>>\n\nA book. [/INST]{So.}{</s>}");
}

TEST(ChatTemplateTest, AlpacaHasItsOwnWords) {
  EXPECT_EQ(Marked(ChatTemplate::kAlpaca, Instruction{"Why?", "", "So."}),
            "^Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nWhy?\n\n### Response:{So.}{</s>}");
  EXPECT_THAT(Marked(ChatTemplate::kAlpaca, Instruction{"Why?", "This.", "So."}),
              AllOf(HasSubstr("paired with an input"),
                    HasSubstr("\n\n### Instruction:\nWhy?\n\n### Input:\nThis.\n\n### Response:{So.}{</s>}")));
  EXPECT_EQ(Marked(ChatTemplate::kAlpaca, kTwoTurns),
            "^Be kind.\n\n### Instruction:\n One? \n\n### Response:{1 }{</s>}\n\n### Instruction:\nTwo?\n\n"
            "### Response:{2}{</s>}");
}

TEST(ChatTemplateTest, InstructionsAreOneExchangeElsewhere) {
  EXPECT_EQ(Marked(ChatTemplate::kChatml, Instruction{"Why?", "This.", "So."}),
            "<|im_start|>user\nWhy?\n\nThis.<|im_end|>\n<|im_start|>assistant\n{So.}{<|im_end|>}\n");
  EXPECT_EQ(Marked(ChatTemplate::kMistral, Instruction{"Why?", "", "So."}), "<s> [INST] Why? [/INST]{ So.}{</s>}");
}

TEST(ChatTemplateTest, ConversationsScoreEveryAnswerAndTheEndOfItsTurn) {
  EXPECT_EQ(Marked(ChatTemplate::kLlama2, kTwoTurns),
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n One? [/INST]{ 1 }{</s>}<s>[INST] Two? [/INST]{ 2 }{</s>}");
  EXPECT_EQ(Marked(ChatTemplate::kChatml, kTwoTurns),
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n One? <|im_end|>\n"
            "<|im_start|>assistant\n{1 }{<|im_end|>}\n<|im_start|>user\nTwo?<|im_end|>\n"
            "<|im_start|>assistant\n{2}{<|im_end|>}\n");
  EXPECT_EQ(Marked(ChatTemplate::kLlama3, kTwoTurns),
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n{1}{<|eot_id|>}"
            "<|start_header_id|>user<|end_header_id|>\n\nTwo?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n{2}{<|eot_id|>}");
  EXPECT_EQ(Marked(ChatTemplate::kMistral, kTwoTurns),
            "<s> [INST] Be kind.\n\n One?  [/INST]{ 1 }{</s>} [INST] Two? [/INST]{ 2}{</s>}");
}

TEST(ChatTemplateTest, AModelsOwnSystemMessageStandsWhereAConversationHasNone) {
  RecordTemplate::Options options;
  options.kind = ChatTemplate::kChatml;
  options.default_system = "You help.";
  options.begins_with_bos = true;
  EXPECT_THAT(Marked(options, kOneTurn), HasSubstr("<s><|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user"));
  EXPECT_THAT(Marked(options, kTwoTurns), HasSubstr("<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user"));
  options.kind = ChatTemplate::kMistral;
  options.takes_system = false;
  EXPECT_THROW(Marked(options, kTwoTurns), RecordError);
}

TEST(ChatTemplateTest, APromptIsWhatStandsBeforeTheLastAnswer) {
  const auto prompt = [](ChatTemplate kind, const SftRecord& record) {
    RecordTemplate::Options options;
    options.kind = kind;
    return Marked(RecordTemplate(options, {"<s>", "</s>"}).RenderPrompt(record));
  };
  EXPECT_EQ(prompt(ChatTemplate::kLlama2, Instruction{"Why?", "", ""}), "^[INST]Why?[/INST]");
  EXPECT_EQ(prompt(ChatTemplate::kLlama2, kTwoTurns),
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n One? [/INST]{ 1 }{</s>}<s>[INST] Two? [/INST]");
  EXPECT_EQ(prompt(ChatTemplate::kAlpaca, Instruction{"Why?", "", ""}),
            "^Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nWhy?\n\n### Response:");
  EXPECT_EQ(prompt(ChatTemplate::kChatml, Conversation{{{Role::kUser, "One?"}, {Role::kAssistant, ""}}}),
            "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(prompt(ChatTemplate::kLlama3, kOneTurn),
            "<s><|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_EQ(prompt(ChatTemplate::kMistral, kOneTurn), "<s> [INST] One? [/INST]");
}

TEST(ChatTemplateTest, AnswersEndWithASpecialToken) {
  const auto end = [](ChatTemplate kind) {
    RecordTemplate::Options options;
    options.kind = kind;
    return RecordTemplate(options, {"<s>", "</s>"}).AnswerEnd();
  };
  EXPECT_EQ(end(ChatTemplate::kLlama2), "</s>");
  EXPECT_EQ(end(ChatTemplate::kAlpaca), "</s>");
  EXPECT_EQ(end(ChatTemplate::kMistral), "</s>");
  EXPECT_EQ(end(ChatTemplate::kChatml), "<|im_end|>");
  EXPECT_EQ(end(ChatTemplate::kLlama3), "<|eot_id|>");
}

TEST(RecordExampleTest, LongRecordsAreShortenedAndSaySo) {
  RecordTemplate::Options options;
  options.kind = ChatTemplate::kMistral;
  const RecordTemplate mistral(options, {"<s>", "</s>"});
  Conversation talk;
  for (int turn = 0; turn < 5; ++turn) {
    talk.messages.push_back({Role::kUser, "Q"});
    talk.messages.push_back({Role::kAssistant, "A"});
  }
  const std::string turns = ExampleLines(ExampleOf(mistral.Render(talk)));
  EXPECT_THAT(turns, EndsWith("prompt |  [INST] Q [/INST]\nanswer |  A</s>\nmore   | [... 4 further parts ...]\n"));

  std::string words, lines;
  for (int i = 0; i < 400; ++i) words += "gr\u00f6\u00dfer ";
  for (int i = 0; i < 100; ++i) lines += "l\n";
  const std::string cut = ExampleLines(ExampleOf(mistral.Render(Instruction{words, "", lines + "end"})));
  EXPECT_THAT(cut, AllOf(HasSubstr(" [... "), HasSubstr(" bytes ...] "), HasSubstr("answer | [... 89 lines ...]\n"),
                         EndsWith("answer | end</s>\n")));
  EXPECT_LT(cut.size(), 1000u);
  EXPECT_NO_THROW(nlohmann::json(cut).dump()) << "valid UTF-8";
}

TEST(RecordExampleTest, ControlCharactersBecomeVisible) {
  const nlohmann::json example = {{{"part", "prompt"}, {"text", "a\x1b[31m\r\tb\x7f\u009b\u00a0\nc"}}};
  EXPECT_EQ(ExampleLines(example), "prompt | a\u241b[31m\u240d\tb\u2421\ufffd\u00a0\nprompt | c\n");
  EXPECT_EQ(ExampleLines("no list"), "");
}

TEST(ChatTemplateTest, StripsWhatPythonCallsWhiteSpace) {
  const Conversation odd{{{Role::kUser, "\u3000\x1f x\u00a0y\u2028\n"}, {Role::kAssistant, "\u200b 1\u0085"}}};
  EXPECT_EQ(Marked(ChatTemplate::kLlama2, odd), "<s>[INST] x\u00a0y [/INST]{ \u200b 1 }{</s>}");
}

class TemplateOfModelTest : public CorpusTest {
 protected:
  std::string NameFor(const std::string& jinja) const {
    Write(
        "model/tokenizer_config.json",
        nlohmann::json({{"chat_template", jinja}, {"bos_token", "<s>"}, {"eos_token", {{"content", "</s>"}}}}).dump());
    return std::string(ChooseTemplate(std::nullopt, root_ / "model").Description()["name"]);
  }
  std::string WhyNot(const std::string& jinja) const {
    try {
      return "taken for " + NameFor(jinja);
    } catch (const UserError& error) {
      return error.what();
    }
  }
};

TEST_F(TemplateOfModelTest, PublishedTemplatesAreKnownInEverySpelling) {
  EXPECT_EQ(NameFor("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
                    "'<|im_end|>' + '\\n'}}{% endfor %}"),
            "chatml");
  EXPECT_EQ(NameFor("{%- for message in messages %}\n{{- \"<|im_start|>\" + message.role + \"\n\" + message.content + "
                    "\"<|im_end|>\n\" }}\n{%- endfor %}"),
            "chatml");
  EXPECT_EQ(NameFor("{{ bos_token }}{% for message in messages %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
                    "{{ ' ' + message['content'] + eos_token}}{% endfor %}"),
            "mistral");
}

TEST_F(TemplateOfModelTest, AVariationIsNotTakenForTheOriginal) {
  const auto names = HasSubstr("set data.template to one of llama2, alpaca, chatml, llama3, mistral");
  EXPECT_THAT(WhyNot("{{ '<|im_start|>' + message.role + '\\n<think>' }}"), AllOf(HasSubstr("thinking"), names));
  EXPECT_THAT(WhyNot("{{ '<|im_start|>' + message.role + '\\n' + message.content|trim + '<|im_end|>\\n' }}"),
              AllOf(HasSubstr("variation of ChatML"), names));
  EXPECT_THAT(WhyNot("{{ '<|start_header_id|>system' }}Cutting Knowledge Date: December 2023"),
              AllOf(HasSubstr("dates"), names));
  EXPECT_THAT(WhyNot("{{ bos_token }}{{ '[INST] ' + message['content'] + ' [/INST]' }}"),
              AllOf(HasSubstr("Mistral"), names));
  EXPECT_THAT(WhyNot("### Instruction:"), AllOf(HasSubstr("Alpaca"), names));
  EXPECT_THAT(WhyNot("{{ message }}"), AllOf(HasSubstr("is not known:"), names));
  EXPECT_THAT(WhyNot(""), AllOf(HasSubstr("has no chat_template"), names));
}

TEST_F(TemplateOfModelTest, TheFileOfNewerModelsAndTheDefaultOfSeveralCount) {
  const std::string mistral =
      "{{ bos_token }}{{ ' [INST] ' + message.content + ' [/INST]' }}{{ ' ' + message.content + eos_token }}";
  Write("model/tokenizer_config.json",
        nlohmann::json({{"eos_token", "</s>"},
                        {"chat_template",
                         {{{"name", "tool_use"}, {"template", "x"}}, {{"name", "default"}, {"template", mistral}}}}})
            .dump());
  EXPECT_EQ(ChooseTemplate(std::nullopt, root_ / "model").Description()["name"], "mistral");
  Write("model/chat_template.jinja",
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}");
  EXPECT_EQ(ChooseTemplate(std::nullopt, root_ / "model").Description()["name"], "chatml");
}

}  // namespace
}  // namespace longspan::trainer
