#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "tests/test_paths.h"
#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/evaluate/conversations.h"
#include "worker/trainer/evaluate/evaluation_report.h"
#include "worker/trainer/evaluate/heat_map.h"
#include "worker/trainer/evaluate/longbench.h"
#include "worker/trainer/evaluate/passkey.h"
#include "worker/trainer/evaluate/run_tasks.h"
#include "worker/trainer/evaluate/topics.h"

namespace longspan::trainer {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

const Tokenizer& TinyTokenizer() {
  static const Tokenizer tokenizer = Tokenizer::Load(longspan::testing::SourceDir() / "deploy/examples/tiny-base-init");
  return tokenizer;
}

std::string WriteLines(const testing::TemporaryFolder& folder, const std::string& name,
                       const std::vector<std::string>& lines) {
  const std::string path = folder.path() + "/" + name;
  std::ofstream file(path);
  for (const std::string& line : lines) file << line << "\n";
  return path;
}

// Answers with fixed tokens, whatever it is asked, and counts the calls.
class FixedModel : public CausalLm {
 public:
  explicit FixedModel(std::vector<int64_t> answer) : answer_(std::move(answer)) { config_.vocab_size = 2048; }
  const ModelConfig& config() const override { return config_; }
  const AdapterPlan& adapter() const override { return adapter_; }
  std::vector<Trainable>& trainables() override { return trainables_; }
  int64_t parameter_count() const override { return 0; }
  void ZeroGradients() override {}
  LossSum ForwardBackward(const Batch&, const GradientReady&) override { return {}; }
  at::Tensor TrainingLogits(const at::Tensor&, const at::Tensor&) override { return {}; }
  LossSum Evaluate(const at::Tensor&, const at::Tensor&, const EvaluationOptions&) override { return {}; }
  void ForEachMergedTensor(const std::function<void(const std::string&, const at::Tensor&)>&) override {}
  void ValuesChanged() override {}
  at::Tensor Continue(const std::vector<Continuation>& sequences, const EvaluationOptions&) override {
    ++calls;
    at::Tensor logits = at::zeros({static_cast<int64_t>(sequences.size()), config_.vocab_size});
    for (size_t row = 0; row < sequences.size(); ++row) {
      const Continuation& own = sequences[row];
      if (first_prompt.empty()) first_prompt = own.tokens;
      if (own.tokens.size() > 1) longest_prompt = std::max(longest_prompt, own.tokens.size());
      size_t& place = places_[own.cache];
      if (own.cache->tokens() == 0) place = 0;
      logits[static_cast<int64_t>(row)][answer_[place++ % answer_.size()]] = 1;
      own.cache->Advance(static_cast<int64_t>(own.tokens.size()));
    }
    return logits;
  }
  int calls = 0;
  size_t longest_prompt = 0;
  std::vector<int64_t> first_prompt;

 private:
  std::vector<int64_t> answer_;
  std::map<const KeyValueCache*, size_t> places_;
  ModelConfig config_;
  AdapterPlan adapter_;
  std::vector<Trainable> trainables_;
};

TaskModel ModelOf(FixedModel* model, int64_t context_length = 256) {
  TaskModel task_model;
  task_model.name = "base";
  task_model.model = model;
  task_model.tokenizer = &TinyTokenizer();
  task_model.decode = [](const std::vector<int64_t>& tokens) {
    return TinyTokenizer().Decode(std::span<const int64_t>(tokens), true);
  };
  task_model.context_length = context_length;
  return task_model;
}

FixedModel Saying(const std::string& text) {
  const auto ids = TinyTokenizer().Encode(text, false);
  return FixedModel({ids.begin(), ids.end()});
}

// ---- passkey ----

TEST(PasskeyTest, TheTextHasTheNumberAtItsDepth) {
  const std::string start = PasskeyText(200, 0, 123), end = PasskeyText(200, 1, 123), middle = PasskeyText(200, 0.5, 7);
  EXPECT_THAT(start, HasSubstr("there.\n\nThe pass key is 123. Remember it. 123 is the pass key.\nThe grass"));
  EXPECT_THAT(end, HasSubstr("123 is the pass key.\n\nWhat is the pass key? The pass key is"));
  EXPECT_EQ(start.size(), end.size());
  EXPECT_THAT(middle,
              HasSubstr("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back ag"));
  EXPECT_TRUE(middle.ends_with("The pass key is"));
}

TEST(PasskeyTest, DepthsReachBothEnds) {
  EXPECT_DOUBLE_EQ(DepthOf(0, 10), 0);
  EXPECT_DOUBLE_EQ(DepthOf(9, 10), 1);
  EXPECT_DOUBLE_EQ(DepthOf(0, 1), 0.5);
}

TEST(PasskeyTest, TheFirstNumberCounts) {
  EXPECT_EQ(FirstNumber(" 123. 456"), 123);
  EXPECT_EQ(FirstNumber("1234"), 1234);
  EXPECT_EQ(FirstNumber("none"), -1);
  EXPECT_EQ(FirstNumber(""), -1);
  EXPECT_GT(FirstNumber("99999999999999999999999999"), int64_t{kPasskeyMax});
}

TEST(PasskeyTest, PromptsFillTheirLengthAndNeverExceedIt) {
  for (const int64_t length : {200, 333, 1000}) {
    const auto task = MakePasskeyTask({{length}, 3, 2}, length, 5, TinyTokenizer());
    ASSERT_NE(task, nullptr);
    FixedModel model = Saying(" 1");
    const auto answers = task->Run(ModelOf(&model), 0, task->examples(), {});
    ASSERT_TRUE(answers);
    ASSERT_THAT(*answers, SizeIs(6));
    std::set<int64_t> keys;
    for (const json& answer : *answers) {
      EXPECT_LT(answer.at("prompt_tokens").get<int64_t>(), length);
      EXPECT_GT(answer.at("prompt_tokens").get<int64_t>(), length - 40) << length;
      EXPECT_GE(answer.at("key").get<int64_t>(), 1);
      EXPECT_LE(answer.at("key").get<int64_t>(), kPasskeyMax);
      keys.insert(answer.at("key").get<int64_t>());
    }
    EXPECT_EQ(keys.size(), 6u);
  }
  EXPECT_EQ(MakePasskeyTask({{20}, 3, 2}, 20, 5, TinyTokenizer()), nullptr);
}

TEST(PasskeyTest, ARightAnswerScoresAtItsDepth) {
  const auto task = MakePasskeyTask({{300}, 2, 2}, 300, 5, TinyTokenizer());
  FixedModel wrong = Saying(" x");
  auto answers = *task->Run(ModelOf(&wrong), 0, 4, {});
  FixedModel right = Saying(" " + std::to_string(answers[2].at("key").get<int64_t>()) + ".");
  answers[2] = (*task->Run(ModelOf(&right), 2, 3, {}))[0];
  EXPECT_EQ(answers[2].at("right"), true) << answers[2];
  const json row = task->Summarise(answers);
  EXPECT_DOUBLE_EQ(row.at("score").get<double>(), 25);
  EXPECT_EQ(row.at("depths")[0].at("right"), 0);
  EXPECT_EQ(row.at("depths")[1].at("right"), 1);
}

// ---- topics ----

TEST(TopicsTest, TopicsAreDifferentAndFixedBySeedAndTrial) {
  const auto topics = DrawTopics(1000, 1, 2);
  EXPECT_EQ(std::set<std::string>(topics.begin(), topics.end()).size(), 1000u);
  EXPECT_EQ(DrawTopics(10, 1, 2), std::vector<std::string>(topics.begin(), topics.begin() + 10));
  EXPECT_NE(DrawTopics(10, 1, 3), DrawTopics(10, 1, 2));
}

TEST(TopicsTest, OnlyTheTopicThatWasAskedForIsRight) {
  const std::vector<std::string> topics = {"the history of bees", "the cost of tea", "the craft of bread"};
  EXPECT_TRUE(NamesOnly(" the Cost of Tea.", topics, 1));
  EXPECT_TRUE(NamesOnly("\n\"cost of tea\"\nUSER: the history of bees", topics, 1));
  EXPECT_FALSE(NamesOnly("the history of bees", topics, 1));
  EXPECT_FALSE(NamesOnly("the cost of tea or the history of bees", topics, 1));
  EXPECT_FALSE(NamesOnly("", topics, 1));
}

TEST(TopicsTest, TheConversationFitsAndAsksForSpreadPlaces) {
  EXPECT_THAT(TopicsText({"a", "b", "c"}, 1, 0), HasSubstr("What was the 2nd topic"));
  const auto task = MakeTopicsTask({{900}, 5, 5}, 900, 5, TinyTokenizer());
  ASSERT_NE(task, nullptr);
  FixedModel model = Saying(" x");
  const auto answers = *task->Run(ModelOf(&model), 0, 5, {});
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(answers[i].at("asked"), i + 1);
    EXPECT_LT(answers[i].at("prompt_tokens").get<int64_t>(), 900);
    EXPECT_GT(answers[i].at("prompt_tokens").get<int64_t>(), 800);
  }
  EXPECT_EQ(MakeTopicsTask({{50}, 5, 5}, 50, 5, TinyTokenizer()), nullptr);
}

// ---- LongBench ----

const char* const kExample = R"({"input": "Who?", "context": "The king spoke.", "answers": ["the king"], "_id": "x"})";

TEST(LongBenchTest, TasksAreReadScoredAndCut) {
  testing::TemporaryFolder folder;
  std::string words;
  for (int i = 0; i < 400; ++i) words += "water ";
  const json long_one = {{"input", "Who?"}, {"context", words}, {"answers", {"water"}}, {"all_classes", nullptr}};
  WriteLines(folder, "hotpotqa.jsonl", {kExample, "", long_one.dump(), kExample});
  WriteLines(folder, "notes.txt", {"nothing"});
  WriteLines(folder, "vcsum.jsonl", {kExample});
  WriteLines(folder, "unknown.jsonl", {kExample});
  std::vector<std::string> warnings;
  const auto warn = [&](const std::string& text) { warnings.push_back(text); };
  const GenerationTasks tasks = MakeLongBenchTasks({folder.path(), {}, 2}, 256, std::nullopt, warn);
  ASSERT_THAT(tasks, SizeIs(1));
  EXPECT_EQ(tasks[0]->name(), "longbench/hotpotqa");
  EXPECT_EQ(tasks[0]->examples(), 2);
  ASSERT_THAT(warnings, SizeIs(2));
  FixedModel model = Saying("The king");
  const auto answers = *tasks[0]->Run(ModelOf(&model), 0, 2, {});
  EXPECT_EQ(answers[0].at("cut"), false);
  EXPECT_EQ(answers[1].at("cut"), true);
  EXPECT_EQ(answers[1].at("length"), 256 - 32);
  EXPECT_EQ(model.longest_prompt, size_t{256 - 32});
  EXPECT_GT(answers[0].at("score").get<double>(), 0);
  EXPECT_EQ(tasks[0]->Summarise(answers).at("cut"), 1);
}

TEST(LongBenchTest, WrongFilesAreTheUsersMistake) {
  testing::TemporaryFolder folder;
  const auto make = [&](std::vector<std::string> tasks) {
    MakeLongBenchTasks({folder.path(), std::move(tasks), 0}, 256, std::nullopt, [](const std::string&) {});
  };
  const auto refuses = [&](std::vector<std::string> tasks, const char* word) {
    EXPECT_THAT([&] { make(tasks); }, ThrowsMessage<UserError>(HasSubstr(word)));
  };
  refuses({}, "has no TASK.jsonl");
  refuses({"hotpotqa"}, "cannot read");
  refuses({"nothing"}, "LongBench has no task nothing; there are 2wikimqa");
  refuses({"dureader"}, "segmenter");
  for (const auto& [line, word] : std::vector<std::pair<std::string, std::string>>{
           {"{", "line 1: it is no JSON object"},
           {R"({"input": "a", "answers": ["b"]})", "\"context\" is missing"},
           {R"({"input": "a", "context": "c", "answers": []})", "\"answers\" has no text"},
           {R"({"input": "a", "context": "c", "answers": "b"})", "\"answers\" is no list of texts"},
           {"", "has no examples"}}) {
    WriteLines(folder, "hotpotqa.jsonl", {line});
    refuses({"hotpotqa"}, word.c_str());
  }
}

// ---- chat templates ----

RecordEncoder Chat(jobfile::ChatTemplate kind) {
  return {TinyTokenizer(), ChooseTemplate(kind, longspan::testing::SourceDir() / "deploy/examples/tiny-base-init"),
          256};
}

std::string PromptText(const std::vector<int64_t>& tokens) {
  return TinyTokenizer().Decode(std::span<const int64_t>(tokens), /*skip_special=*/false);
}

TEST(ChatTest, PromptsAreWrittenInTheTemplateAndAnswersEndWithIt) {
  const RecordEncoder llama2 = Chat(jobfile::ChatTemplate::kLlama2);
  EXPECT_EQ(PromptText(ChatTokens(llama2, Instruction{"Who spoke?", "", ""})), "<s>[INST]Who spoke?[/INST]");
  EXPECT_EQ(PromptText(ChatTokens(llama2, ConversationRecord({"One?", "Two?"}, {"yes"}))),
            "<s>[INST] One? [/INST] yes </s><s>[INST] Two? [/INST]");
  EXPECT_EQ(llama2.answer_end(), *TinyTokenizer().IdOf("</s>"));
}

TEST(ChatTest, LongBenchAsksItsFewShotAndCodeTasksAsTheyAre) {
  testing::TemporaryFolder folder;
  std::string words;
  for (int i = 0; i < 400; ++i) words += "water ";
  const json long_one = {{"input", "Who?"}, {"context", words}, {"answers", {"water"}}};
  WriteLines(folder, "hotpotqa.jsonl", {long_one.dump()});
  WriteLines(folder, "lcc.jsonl", {kExample});
  const auto quiet = [](const std::string&) {};
  const jobfile::LongBenchSection section{folder.path(), {"hotpotqa", "lcc"}, 0};
  const GenerationTasks plain = MakeLongBenchTasks(section, 256, std::nullopt, quiet);
  const GenerationTasks chat = MakeLongBenchTasks(section, 256, Chat(jobfile::ChatTemplate::kLlama2), quiet);
  EXPECT_FALSE(plain[0]->settings().contains("template")) << "what was kept before stays good";
  EXPECT_EQ(chat[0]->settings().at("template").at("name"), "llama2");
  EXPECT_EQ(chat[1]->settings(), plain[1]->settings());
  std::vector<int64_t> answer = PromptTokens(TinyTokenizer(), "water");
  answer.push_back(*TinyTokenizer().IdOf("</s>"));
  answer.push_back(answer[1]);
  FixedModel model(answer);
  TaskModel asked = ModelOf(&model);
  asked.end_ids.clear();  // a model that names no end token
  const auto answers = *chat[0]->Run(asked, 0, 1, {});
  EXPECT_THAT(answers[0].at("pred").get<std::string>(), "water");
  EXPECT_EQ(answers[0].at("length"), 256 - 32) << "template and text together";
  EXPECT_THAT(PromptText(model.first_prompt), AllOf(StartsWith("<s>[INST]Answer the question"), EndsWith("[/INST]")));
  EXPECT_EQ(chat[0]->Summarise(answers).at("template"), "llama2");
  model.first_prompt.clear();
  const auto code = *chat[1]->Run(ModelOf(&model), 0, 1, {});
  EXPECT_THAT(PromptText(model.first_prompt), StartsWith("<s>Please complete the code"));
  EXPECT_FALSE(chat[1]->Summarise(code).contains("template"));
}

TEST(ChatTest, TurnsCarryTheirAnswersInTheTemplate) {
  testing::TemporaryFolder folder;
  WriteLines(folder, "a.jsonl", {R"({"question_id": 81, "turns": ["One?", "Two?"]})"});
  const auto task = MakeConversationsTask({folder.path(), 12}, 256, Chat(jobfile::ChatTemplate::kAlpaca));
  FixedModel model = Saying(" water\nUSER: more");
  const auto answers = *task->Run(ModelOf(&model), 0, 1, {});
  EXPECT_THAT(answers[0].at("choices")[0].at("turns")[0].get<std::string>(), StartsWith("water\nUSER: more"))
      << "plain text's end is none here";
  EXPECT_THAT(PromptText(model.first_prompt), HasSubstr("### Instruction:\nOne?\n\n### Response:"));
  EXPECT_EQ(task->Summarise(answers).at("template"), "alpaca");
  EXPECT_NE(task->settings(), MakeConversationsTask({folder.path(), 12}, 256, std::nullopt)->settings());
}

TEST(ChatTest, ATemplateThatTheModelCannotUseIsTheUsersMistake) {
  testing::TemporaryFolder folder;
  WriteLines(folder, "hotpotqa.jsonl", {kExample});
  jobfile::JobSpec spec;
  spec.model.path = (longspan::testing::SourceDir() / "deploy/examples/tiny-base-init").string();
  spec.context_length = 256;
  spec.evaluation.longbench.path = folder.path();
  const auto make = [&](jobfile::PromptTemplate kind) {
    spec.evaluation.prompt_template = kind;
    return MakeGenerationTasks(spec, TinyTokenizer(), [](const std::string&) {});
  };
  EXPECT_THAT(make(jobfile::PromptTemplate::kNone), SizeIs(1));
  EXPECT_THAT(make(jobfile::PromptTemplate::kLlama2), SizeIs(1));
  EXPECT_THAT([&] { make(jobfile::PromptTemplate::kModel); },
              ThrowsMessage<UserError>(HasSubstr("has no chat_template: set evaluation.template to one of llama2")));
  EXPECT_THAT([&] { make(jobfile::PromptTemplate::kLlama3); },
              ThrowsMessage<UserError>(HasSubstr("cannot use template llama3: the model's tokenizer has no token")));
}

// ---- conversations ----

TEST(ConversationsTest, BothFormsAreReadAndAskedTurnByTurn) {
  testing::TemporaryFolder folder;
  WriteLines(folder, "a.jsonl", {R"({"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]})"});
  WriteLines(folder, "b.jsonl", {R"({"id": "m-1", "conv": [{"user": "Three?", "sys": "x"}]})"});
  const auto conversations = ReadConversations(folder.path());
  ASSERT_THAT(conversations, SizeIs(2));
  EXPECT_EQ(ConversationPrompt(conversations[0].turns, {}), "USER: One?\nASSISTANT:");
  EXPECT_EQ(ConversationPrompt(conversations[0].turns, {"yes"}), "USER: One?\nASSISTANT: yes\nUSER: Two?\nASSISTANT:");
  const auto task = MakeConversationsTask({folder.path(), 12}, 256, std::nullopt);
  FixedModel model = Saying(" water\nUSER: more");
  int done = 0;
  TaskHooks hooks;
  hooks.example_done = [&done] { ++done; };
  const auto answers = *task->Run(ModelOf(&model), 0, 2, hooks);
  EXPECT_EQ(done, 2);
  EXPECT_EQ(answers[0].at("question_id"), 81);
  EXPECT_EQ(answers[0].at("choices")[0].at("turns"), json({"water", "water"}));
  EXPECT_EQ(answers[1].at("question_id"), "m-1");
  const json row = task->Summarise(answers);
  EXPECT_FALSE(row.contains("score"));
  EXPECT_EQ(row.at("turns"), 3);
  EXPECT_EQ(row.at("judge"), "none included");
}

TEST(ConversationsTest, WrongFilesAreTheUsersMistake) {
  testing::TemporaryFolder folder;
  for (const char* line : {"[]", "{}", R"({"turns": []})", R"({"turns": [1]})", R"({"conv": [{}]})", ""}) {
    const std::string path = WriteLines(folder, "q.jsonl", {line});
    EXPECT_THROW(ReadConversations(path), UserError) << line;
  }
  EXPECT_THROW(ReadConversations(folder.path() + "/none.jsonl"), UserError);
  WriteLines(folder, "q.jsonl", {R"({"turns": ["a"]})"});
  EXPECT_THROW(MakeConversationsTask({folder.path(), 1024}, 256, std::nullopt), UserError);
}

// ---- running ----

class RunTasksTest : public ::testing::Test {
 protected:
  TaskRunResult Run(FixedModel& model, const std::function<bool()>& stop_requested = {}) {
    rows_.clear();
    progress_.clear();
    GenerationTasks tasks;
    tasks.push_back(MakePasskeyTask({{200}, 2, 1}, 200, 5, TinyTokenizer()));
    tasks.push_back(MakePasskeyTask({{300}, 2, 1}, 300, 5, TinyTokenizer()));
    TaskRunOptions options;
    options.work = folder_.path();
    options.checkpoint = checkpoint_;
    TaskRunHooks hooks;
    hooks.row = [this](const json& row) { rows_.push_back(row); };
    hooks.progress = [this](int64_t done, int64_t all) { progress_.emplace_back(done, all); };
    hooks.stop_requested = stop_requested;
    auto ranks = Communicator::OpenStore({});
    return RunGenerationTasks(tasks, {ModelOf(&model)}, *ranks, options, hooks);
  }
  testing::TemporaryFolder folder_;
  std::string checkpoint_ = "step-1";
  std::vector<json> rows_;
  std::vector<std::pair<int64_t, int64_t>> progress_;
};

TEST_F(RunTasksTest, WhatIsWholeIsNotRunAgain) {
  FixedModel model = Saying(" 1");
  const TaskRunResult first = Run(model);
  EXPECT_FALSE(first.stopped);
  ASSERT_THAT(first.rows, SizeIs(2));
  EXPECT_EQ(first.rows[1].at("length"), 300);
  EXPECT_EQ(first.rows[1].at("answers"), "evaluation/base/passkey-300.jsonl");
  EXPECT_EQ(progress_.back(), std::pair(int64_t{4}, int64_t{4}));
  std::ifstream answers(folder_.path() + "/evaluation/base/passkey-300.jsonl");
  std::string line;
  int lines = 0;
  while (std::getline(answers, line)) lines += json::parse(line).contains("answer") ? 1 : 0;
  EXPECT_EQ(lines, 2);

  const int calls = model.calls;
  EXPECT_EQ(Run(model).rows, first.rows);
  EXPECT_EQ(model.calls, calls);
  EXPECT_EQ(rows_, first.rows);
  EXPECT_EQ(progress_.back(), std::pair(int64_t{4}, int64_t{4}));

  checkpoint_ = "step-2";
  Run(model);
  EXPECT_GT(model.calls, calls);
}

TEST_F(RunTasksTest, AStopKeepsTheTasksThatAreWhole) {
  FixedModel model = Saying(" 1");
  const TaskRunResult stopped = Run(model, [&] { return rows_.size() == 1; });
  EXPECT_TRUE(stopped.stopped);
  EXPECT_THAT(stopped.rows, SizeIs(1));
  const int calls = model.calls;
  EXPECT_THAT(Run(model).rows, SizeIs(2));
  EXPECT_GT(model.calls, calls);
  EXPECT_EQ(progress_.front(), std::pair(int64_t{2}, int64_t{4}));
}

// ---- report ----

TEST(EvaluationReportTest, HasATableForEachKindAndAPictureForPasskeys) {
  const json depths = {{{"depth", 0.0}, {"right", 2}, {"trials", 2}}, {{"depth", 1.0}, {"right", 1}, {"trials", 2}}};
  const json evaluation = {
      {"job", "x"},
      {"checkpoint", "step-9"},
      {"rows", {{{"model", "base"}, {"length", 64}, {"protocol", "windows"}, {"perplexity", 12.5}}}},
      {"tasks",
       {{{"model", "base"}, {"task", "passkey"}, {"length", 128}, {"score", 75.0}, {"examples", 4}, {"depths", depths}},
        {{"model", "extended"},
         {"task", "passkey"},
         {"length", 64},
         {"score", 75.0},
         {"examples", 4},
         {"depths", depths}},
        {{"model", "extended"},
         {"task", "passkey"},
         {"length", 128},
         {"score", 75.0},
         {"examples", 4},
         {"depths", depths}},
        {{"model", "extended"}, {"task", "longbench/hotpotqa"}, {"length", 128}, {"score", 37.02}, {"examples", 4}},
        {{"model", "extended"}, {"task", "longbench/lcc"}, {"length", 128}, {"score", 57.0}, {"examples", 4}},
        {{"model", "extended"},
         {"task", "conversations"},
         {"length", 128},
         {"examples", 4},
         {"conversations", 4},
         {"turns", 8},
         {"answers", "evaluation/extended/conversations.jsonl"}}}}};
  const std::string text = EvaluationMarkdown(evaluation);
  EXPECT_THAT(text, HasSubstr("| 64 | 12.5 |"));
  EXPECT_THAT(text, HasSubstr("| 128 | 75.0 % | 75.0 % |"));
  EXPECT_THAT(text, HasSubstr("| hotpotqa | 37.02 |"));
  EXPECT_THAT(text, HasSubstr("| **mean of the English tasks** | 47.01 |"));
  EXPECT_THAT(text, HasSubstr("no judge is included"));
  const auto pictures = PasskeyPictures(evaluation);
  ASSERT_EQ(pictures.size(), 2u);
  const std::string& svg = pictures.at("passkey-extended.svg");
  EXPECT_LT(svg.find(">64<"), svg.find(">128<"));
  EXPECT_THAT(svg, HasSubstr(">50</text>"));
}

TEST(HeatMapTest, WhatWasNotMeasuredIsGreyAndTextsAreEscaped) {
  HeatMap map;
  map.title = "a < b & c";
  map.columns = {"1"};
  map.rows = {"0 %", "100 %"};
  map.values = {{1.0}, {std::nullopt}};
  const std::string svg = DrawHeatMap(map);
  EXPECT_THAT(svg, HasSubstr("a &lt; b &amp; c"));
  EXPECT_THAT(svg, HasSubstr("#d0d0d0"));
  EXPECT_THAT(svg, HasSubstr("#1a9850"));
}

}  // namespace
}  // namespace longspan::trainer
