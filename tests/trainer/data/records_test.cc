// Instructions and chats from files to scored tokens.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/trainer/data/corpus_fixture.h"
#include "worker/trainer/data/json_values.h"
#include "worker/trainer/data/ordered_workers.h"
#include "worker/trainer/data/sft_records.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using jobfile::ChatTemplate;
using jobfile::DataFormat;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string Chat(const std::string& question, const std::string& answer) {
  return json({{"messages", {{{"role", "user"}, {"content", question}}, {{"role", "assistant"}, {"content", answer}}}}})
      .dump();
}
std::string Question(const std::string& instruction, const std::string& output) {
  return json({{"instruction", instruction}, {"output", output}}).dump();
}

class RecordsTest : public CorpusTest {
 protected:
  PrepareOptions Llama2(std::vector<fs::path> sources, int64_t context_length = 64) const {
    PrepareOptions options = Options(std::move(sources));
    options.chat_template = ChatTemplate::kLlama2;
    options.context_length = context_length;
    options.longest_evaluation_length = context_length;
    return options;
  }
  std::vector<int64_t> Tokens(const PreparedDataset& prepared) const {
    const std::string bytes = Read(prepared.folder / "tokens.bin");
    const auto* ids = reinterpret_cast<const uint16_t*>(bytes.data());
    return {ids, ids + bytes.size() / 2};
  }
  // What is scored, as text of ids; documents apart.
  std::vector<std::vector<int64_t>> Scored(const PreparedDataset& prepared) const {
    const std::string scored = Read(prepared.folder / "scored.bin");
    const std::string ends = Read(prepared.folder / "documents.bin");
    const std::vector<int64_t> tokens = Tokens(prepared);
    EXPECT_EQ(scored.size(), tokens.size());
    const auto* offsets = reinterpret_cast<const uint64_t*>(ends.data());
    std::vector<std::vector<int64_t>> result;
    for (size_t document = 0; document + 1 < ends.size() / 8; ++document) {
      result.emplace_back();
      for (uint64_t i = offsets[document]; i < offsets[document + 1]; ++i) {
        if (scored[i] != 0) result.back().push_back(tokens[i]);
      }
    }
    return result;
  }
  static std::vector<int64_t> Ids(const std::string& text) {
    const auto ids = Tokenizer::Load(TinyModel()).Encode(text, false);
    return {ids.begin(), ids.end()};
  }
  json About(const PreparedDataset& prepared) const { return json::parse(Read(prepared.folder / "dataset.json")); }
  std::string RefusalOf(const std::string& record) const {
    return Refusal(Llama2({Write("r.jsonl", Question("a", "b") + "\n" + record + "\n")}));
  }
  std::string ChatRefusalOf(const std::string& record) const {
    return Refusal(Llama2({Write("c.jsonl", Chat("a", "b") + "\n\n" + record + "\n")}));
  }
};

TEST_F(RecordsTest, AnswersAndTheirEndAreScoredAndNothingElse) {
  const auto prepared = Prepare(Llama2(
      {Write("a.jsonl",
             Question("Who?", "God.") + "\n" +
                 json({{"instruction", "Sum up."}, {"input", "In the beginning."}, {"output", "Light."}, {"file", 7}})
                     .dump())}));
  EXPECT_EQ(prepared.format, DataFormat::kInstruction);
  EXPECT_THAT(Scored(prepared), ElementsAre(Ids("God.</s>"), Ids("Light.</s>")));
  const std::vector<int64_t> tokens = Tokens(prepared);
  std::vector<int64_t> first = Ids("<s>[INST]Who?[/INST]God.</s>");
  EXPECT_EQ(std::vector<int64_t>(tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(first.size())), first);
  EXPECT_EQ(prepared.example, "prompt | [INST]Who?[/INST]\nanswer | God.</s>\n");
  const json about = About(prepared);
  EXPECT_EQ(about["format"], "instruction");
  EXPECT_EQ(about["template"], "llama2");
  EXPECT_EQ(about["records"], 2);
  EXPECT_EQ(about["dropped"], 0);
  EXPECT_EQ(about["scored_tokens"], Ids("God.</s>").size() + Ids("Light.</s>").size());
}

TEST_F(RecordsTest, ArraysLinesPackedAndShareGptFilesReadAlike) {
  const std::string chat = Chat("Who?", "God \"{[,\\\" said.");
  const auto lines = Prepare(Llama2({Write("a.jsonl", chat + "\n" + Chat("And?", "Light.") + "\n")}));
  EXPECT_EQ(lines.format, DataFormat::kChat);
  const auto tokens = Tokens(lines);
  const std::string array = "\xEF\xBB\xBF [\r\n" + json::parse(chat).dump(2) + ",\n" + Chat("And?", "Light.") + "\n]\n";
  EXPECT_EQ(Tokens(Prepare(Llama2({Write("b.json", array)}))), tokens);
  EXPECT_EQ(Tokens(Prepare(Llama2({WriteGzip("c.json.gz", array)}))), tokens);
  EXPECT_EQ(Tokens(Prepare(Llama2({WriteZstd("d.json.zst", array)}))), tokens);
  EXPECT_EQ(Tokens(Prepare(Llama2({Write("e.json", chat + Chat("And?", "Light."))}))), tokens);
  const json gpt = {
      {"conversations", {{{"from", "human"}, {"value", "Who?"}}, {{"from", "gpt"}, {"value", "God \"{[,\\\" said."}}}}};
  EXPECT_EQ(Tokens(Prepare(Llama2({Write("f.jsonl", gpt.dump() + "\r\n" + Chat("And?", "Light."))}))), tokens);
}

TEST_F(RecordsTest, APromptThatFillsTheContextIsDroppedAndALongAnswerCut) {
  std::string words;
  for (int i = 0; i < 60; ++i) words += " light";
  const auto source = Write("a.jsonl", Question("Who?", "God.") + "\n" + Question(words, "never seen") + "\n" +
                                           Question("Who?", words) + "\n");
  std::vector<std::string> warnings;
  PrepareCallbacks callbacks;
  callbacks.warning = [&](const std::string& message) { warnings.push_back(message); };
  for (int again = 0; again < 2; ++again) {  // the second finds the folder and says the same
    warnings.clear();
    const auto prepared = Prepare(Llama2({source}, 32), callbacks);
    EXPECT_EQ(prepared.reused, again == 1);
    EXPECT_EQ(prepared.documents, 2);
    const auto scored = Scored(prepared);
    ASSERT_EQ(scored.size(), 2u);
    EXPECT_EQ(scored[1].size(), 32 - Ids("<s>[INST]Who?[/INST]").size()) << "up to the context, without its end";
    EXPECT_NE(scored[1].back(), 1);
    EXPECT_THAT(warnings, Contains(AllOf(HasSubstr("1 of 3 records are dropped"), HasSubstr("a.jsonl line 2"))));
    EXPECT_THAT(warnings, Contains(HasSubstr("1 of 3 records are longer than the context of 32 tokens")));
  }
  EXPECT_EQ(Prepare(Llama2({source}, 64)).documents, 2) << "still too long a prompt";
  EXPECT_EQ(Prepare(Llama2({source}, 256)).documents, 3);
  EXPECT_THAT(Refusal(Llama2({Write("b.jsonl", Question(words, "x"))}, 32)),
              AllOf(HasSubstr("no record is left"), HasSubstr("raise context_length")));
}

TEST_F(RecordsTest, ExactlyFittingRecordsAreWhole) {
  const auto whole = static_cast<int64_t>(Ids("<s>[INST]Who?[/INST]God.</s>").size());
  const auto source = Write("a.jsonl", Question("Who?", "God."));
  const auto fits = Prepare(Llama2({source}, whole));
  EXPECT_EQ(About(fits)["cut"], 0);
  EXPECT_EQ(Scored(fits)[0].back(), 1);
  const auto cut = Prepare(Llama2({source}, whole - 1));
  EXPECT_EQ(About(cut)["cut"], 1);
  EXPECT_EQ(Scored(cut)[0], Ids("God."));
  const auto prompt = static_cast<int64_t>(Ids("<s>[INST]Who?[/INST]").size());
  EXPECT_EQ(About(Prepare(Llama2({source}, prompt + 1)))["cut"], 1);
  EXPECT_THAT(Refusal(Llama2({source}, prompt)), HasSubstr("no record is left"));
}

TEST_F(RecordsTest, WhatIsWrongWithARecordIsSaidWithItsPlaceAndWhatWouldBeRight) {
  EXPECT_THAT(RefusalOf(R"({"instruction": "a"})"), HasSubstr("r.jsonl line 2: \"output\" is missing"));
  EXPECT_THAT(RefusalOf(R"({"instruction": 1, "output": "b"})"), HasSubstr("\"instruction\" is a number"));
  EXPECT_THAT(RefusalOf(R"({"instruction": "a", "input": [], "output": "b"})"), HasSubstr("\"input\" is a array"));
  EXPECT_THAT(RefusalOf(R"({"instruction": "a", "output": " \n"})"), HasSubstr("\"output\" is empty"));
  EXPECT_THAT(RefusalOf(R"({"text": "a"})"), HasSubstr("looks like text data: set data.format to text"));
  EXPECT_THAT(RefusalOf(Chat("a", "b")), HasSubstr("looks like chat data"));
  EXPECT_THAT(RefusalOf(R"({"output": "a", "output": "b"})"), HasSubstr("the key \"output\" stands twice"));
  EXPECT_THAT(RefusalOf("[]"), HasSubstr("a JSON array stands where an object is needed"));
  EXPECT_THAT(RefusalOf(std::string(100000, '[')), HasSubstr("nested deeper than 64 levels"));
}

TEST_F(RecordsTest, WhatIsWrongWithAConversationIsSaidWithItsMessage) {
  const auto messages = [](const json& list) { return json({{"messages", list}}).dump(); };
  const auto message = [](const char* role, const char* content) {
    return json({{"role", role}, {"content", content}});
  };
  const json user = message("user", "a"), assistant = message("assistant", "b"), system = message("system", "s");
  EXPECT_THAT(ChatRefusalOf(R"({"messages": "a"})"), HasSubstr("c.jsonl line 3: \"messages\" is a string"));
  EXPECT_THAT(ChatRefusalOf(R"({"messages": []})"), HasSubstr("\"messages\" is empty"));
  EXPECT_THAT(ChatRefusalOf(messages(json::array({user, "b"}))),
              HasSubstr("message 2 of \"messages\": it is a string"));
  EXPECT_THAT(
      ChatRefusalOf(messages(json::array({user, message("robot", "b")}))),
      AllOf(HasSubstr("the role \"robot\" is not known"), HasSubstr("system, user (human) and assistant (gpt)")));
  EXPECT_THAT(ChatRefusalOf(messages(json::array({user, {{"role", "assistant"}}}))),
              HasSubstr("message 2 of \"messages\": \"content\" is missing"));
  EXPECT_THAT(ChatRefusalOf(messages(json::array({user, {{"role", "assistant"}, {"content", nullptr}}}))),
              HasSubstr("\"content\" is a null"));
  EXPECT_THAT(ChatRefusalOf(messages(json::array({user, message("assistant", "  ")}))),
              HasSubstr("the answer is empty"));
  EXPECT_THAT(ChatRefusalOf(messages(json::array({user, user, assistant}))),
              HasSubstr("message 2 of \"messages\": the role is user where assistant is due"));
  EXPECT_THAT(ChatRefusalOf(messages(json::array({assistant}))), HasSubstr("assistant where user is due"));
  EXPECT_THAT(ChatRefusalOf(messages(json::array({user, assistant, system}))), HasSubstr("system where user is due"));
  EXPECT_THAT(ChatRefusalOf(messages(json::array({user, assistant, user}))), HasSubstr("ends with an answer"));
  EXPECT_THAT(ChatRefusalOf(messages(json::array({system}))), HasSubstr("the last message"));
  EXPECT_THAT(ChatRefusalOf(messages(
                  json::array({user, {{"role", "assistant"}, {"content", "b"}, {"tool_calls", {{{"id", 1}}}}}}))),
              HasSubstr("calls tools"));
  EXPECT_THAT(ChatRefusalOf(Question("a", "b")), HasSubstr("looks like instruction data"));
}

TEST_F(RecordsTest, ATextFileIsNoPlaceForRecords) {
  auto options = Llama2({Write("a.txt", "text")});
  options.format = DataFormat::kChat;
  EXPECT_THAT(Refusal(options), AllOf(HasSubstr("a.txt as chat data"), HasSubstr(".jsonl or .json")));
}

TEST_F(RecordsTest, ATokenThatTheVocabularyLacksIsNeverAdded) {
  auto options = Llama2({Write("a.jsonl", Question("a", "b"))});
  for (const ChatTemplate kind : {ChatTemplate::kChatml, ChatTemplate::kLlama3}) {
    options.chat_template = kind;
    EXPECT_THAT(Refusal(options), AllOf(HasSubstr("has no token <|"), HasSubstr("no vocabulary is ever grown")));
  }
  options.chat_template = std::nullopt;
  EXPECT_THAT(Refusal(options), HasSubstr("has no chat_template"));
  options.chat_template = ChatTemplate::kMistral;
  const json about = About(Prepare(options));
  EXPECT_LE(about["vocab_size"], Tokenizer::Load(TinyModel()).vocab_size());
  EXPECT_EQ(about["pad"], 1) << "rows are filled with EOS, which is there";
}

TEST_F(RecordsTest, ATextThatSpellsASpecialTokenIsCounted) {
  std::vector<std::string> warnings;
  PrepareCallbacks callbacks;
  callbacks.warning = [&](const std::string& message) { warnings.push_back(message); };
  Prepare(Llama2({Write("a.jsonl", Question("a", "say </s> now") + "\n" + Question("a", "b"))}), callbacks);
  EXPECT_THAT(warnings, Contains(HasSubstr("1 of 2 records have a text that spells a special token")));
}

TEST_F(RecordsTest, TheBytesDoNotDependOnThreadsAndTheFirstMistakeIsTheOneTold) {
  std::string lines;
  for (int i = 0; i < 20000; ++i)
    lines += Question("Question " + std::to_string(i), std::string(1 + i % 90, 'x')) + "\n";
  auto one = Llama2({Write("a.jsonl", lines)});
  auto many = one;
  one.datasets_root = root_ / "one";
  many.threads = 5;
  const auto a = Prepare(one), b = Prepare(many);
  for (const char* file : {"tokens.bin", "documents.bin", "scored.bin", "dataset.json"}) {
    EXPECT_EQ(Read(a.folder / file), Read(b.folder / file)) << file;
  }
  EXPECT_FALSE(b.reused);
  const std::string bad = lines + "{\"instruction\": 1}\n" + lines + "nonsense\n" + std::string(1 << 20, '[');
  for (const int64_t threads : {1, 2, 5}) {
    many = Llama2({Write("bad.jsonl", bad)});
    many.threads = threads;
    EXPECT_THAT(Refusal(many), HasSubstr("bad.jsonl line 20001: \"instruction\" is a number"));
  }
}

// ---- the parts ----

std::vector<std::string> ValuesOf(const std::string& text, size_t step) {
  std::vector<std::string> values;
  JsonValues reader([&](std::string_view value, int64_t line,
                        int64_t offset) { values.push_back(fmt::format("{}@{}:{}", value, line, offset)); },
                    [](const std::string& why, int64_t line) { throw RecordError(fmt::format("{}: {}", line, why)); });
  try {
    for (size_t at = 0; at < text.size(); at += step) reader.Append(std::string_view(text).substr(at, step));
    reader.Finish();
  } catch (const RecordError& error) {
    values.push_back(error.what());
  }
  return values;
}

TEST(JsonValuesTest, CutsAnArrayOrAStreamWhereverItsBytesArrive) {
  for (const size_t step : {1, 2, 3, 7, 1000}) {
    EXPECT_THAT(ValuesOf("[ {\"a\": \"]},\\\"\"} ,\n[1, {}],2 , \"x\\\\\", null]\n", step),
                ElementsAre("{\"a\": \"]},\\\"\"}@1:2", "[1, {}]@2:19", "2@2:27", "\"x\\\\\"@2:31", "null@2:38"));
    EXPECT_THAT(ValuesOf("{}\n{\"a\":1} {}", step), ElementsAre("{}@1:0", "{\"a\":1}@2:3", "{}@2:11"));
    EXPECT_THAT(ValuesOf("[]", step), IsEmpty());
    EXPECT_THAT(ValuesOf(" \n", step), IsEmpty());
    EXPECT_THAT(ValuesOf("[{}", step), ElementsAre("{}@1:1", HasSubstr("not closed")));
    EXPECT_THAT(ValuesOf("[\n{\"a", step), ElementsAre("2: the record is not closed: the file is cut off"));
    EXPECT_THAT(ValuesOf("[{} {}]", step), ElementsAre("{}@1:1", HasSubstr("a comma is missing")));
    EXPECT_THAT(ValuesOf("[{},]", step), ElementsAre("{}@1:1", HasSubstr("']' stands where a record")));
    EXPECT_THAT(ValuesOf("[] x", step), ElementsAre(HasSubstr("behind the end")));
    EXPECT_THAT(ValuesOf("[1}, 2]", step), ElementsAre("1}@1:1", "2@1:5"));  // the parser of the value refuses it
  }
}

TEST(OrderedWorkersTest, ResultsComeInOrderAndTheFirstErrorWins) {
  for (const int64_t threads : {1, 2, 4}) {
    std::vector<int> seen;
    OrderedWorkers<int, int> workers(
        {.threads = threads, .items_max = 3, .bytes_max = 10},
        [](int& item, size_t) {
          if (item == 50) throw std::runtime_error("fifty");
          return item * 2;
        },
        [&](int result) { seen.push_back(result); });
    std::string error;
    try {
      for (int i = 0; i < 100; ++i) workers.Put(i, i % 20);
      workers.Finish();
    } catch (const std::runtime_error& thrown) {
      error = thrown.what();
      workers.Finish();
    }
    EXPECT_EQ(error, "fifty");
    ASSERT_EQ(seen.size(), 50u);
    for (int i = 0; i < 50; ++i) EXPECT_EQ(seen[static_cast<size_t>(i)], i * 2);
  }
}

}  // namespace
}  // namespace longspan::trainer
