#include "worker/trainer/evaluate/longbench.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "worker/storage/sha256.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string TextField(const json& record, const char* key, const std::string& where) {
  const auto found = record.find(key);
  if (found == record.end() || !found->is_string()) {
    throw UserError(fmt::format("cannot read {}: \"{}\" is missing or no text", where, key));
  }
  return found->get<std::string>();
}

std::vector<std::string> TextList(const json& record, const char* key, const std::string& where) {
  const auto found = record.find(key);
  if (found == record.end() || found->is_null()) return {};
  const bool texts =
      found->is_array() && std::all_of(found->begin(), found->end(), [](const json& item) { return item.is_string(); });
  if (!texts) throw UserError(fmt::format("cannot read {}: \"{}\" is no list of texts", where, key));
  return found->get<std::vector<std::string>>();
}

LongBenchExample ParseExample(const std::string& line, const std::string& where) {
  const json record = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object()) throw UserError(fmt::format("cannot read {}: it is no JSON object", where));
  LongBenchExample example;
  example.input = TextField(record, "input", where);
  example.context = TextField(record, "context", where);
  example.answers = TextList(record, "answers", where);
  if (example.answers.empty()) throw UserError(fmt::format("cannot read {}: \"answers\" has no text", where));
  example.all_classes = TextList(record, "all_classes", where);
  const auto id = record.find("_id");
  if (id != record.end() && id->is_string()) example.id = id->get<std::string>();
  return example;
}

class LongBenchRun : public GenerationTask {
 public:
  LongBenchRun(const LongBenchTask& task, std::vector<LongBenchExample> examples, int64_t context_length,
               std::optional<RecordEncoder> chat)
      : task_(task), examples_(std::move(examples)), context_length_(context_length), chat_(std::move(chat)) {
    storage::Sha256 hash;
    for (const LongBenchExample& example : examples_) {
      hash.Add(json{example.input, example.context, example.answers, example.all_classes, example.id}.dump(
          -1, ' ', false, json::error_handler_t::replace));
    }
    hash_ = hash.Hex();
  }

  std::string name() const override { return "longbench/" + task_.name; }
  int64_t length() const override { return context_length_; }
  int64_t examples() const override { return static_cast<int64_t>(examples_.size()); }
  json settings() const override {
    json settings = {{"examples", hash_}, {"score", task_.score}};
    if (chat_) settings["template"] = chat_->record_template().Description();
    return settings;
  }

  std::optional<std::vector<json>> Run(const TaskModel& model, int64_t begin, int64_t end,
                                       const TaskHooks& hooks) const override {
    const int64_t prompt_max = context_length_ - task_.answer_tokens;
    std::vector<Prompt> prompts;
    std::vector<bool> cut;
    for (int64_t index = begin; index < end; ++index) {
      const std::string text = PromptOf(task_, examples_[static_cast<size_t>(index)]);
      std::vector<int64_t> tokens =
          chat_ ? ChatTokens(*chat_, Instruction{text, "", ""}) : PromptTokens(*model.tokenizer, text);
      cut.push_back(static_cast<int64_t>(tokens.size()) > prompt_max);
      prompts.push_back({TruncatedInTheMiddle(std::move(tokens), prompt_max), task_.answer_tokens});
    }
    AnswerOptions options;
    if (chat_) options.end_ids = {chat_->answer_end()};
    if (task_.ends_at_newline) {
      const std::vector<int64_t> newline = PromptTokens(*model.tokenizer, "\n");
      options.end_ids.push_back(newline.back());
      options.min_new_tokens = 1;
    }
    const auto texts = Answer(model, prompts, options, begin, hooks);
    if (!texts) return std::nullopt;
    std::vector<json> answers;
    for (int64_t index = begin; index < end; ++index) {
      const LongBenchExample& example = examples_[static_cast<size_t>(index)];
      const size_t place = static_cast<size_t>(index - begin);
      const std::string text = model.decode((*texts)[place].tokens);
      // The fields of LongBench's own prediction files first, so that its program can read them.
      answers.push_back({{"pred", text},
                         {"answers", example.answers},
                         {"all_classes", example.all_classes},
                         {"length", prompts[place].tokens.size()},
                         {"_id", example.id},
                         {"cut", static_cast<bool>(cut[place])},
                         {"score", ScoreOf(task_, example, text)}});
    }
    return answers;
  }

  json Summarise(const std::vector<json>& answers) const override {
    double sum = 0;
    int64_t cut = 0;
    for (const json& answer : answers) {
      sum += answer.at("score").get<double>();
      cut += answer.at("cut").get<bool>() ? 1 : 0;
    }
    json row = {{"score", 100 * sum / static_cast<double>(examples_.size())}, {"measure", task_.score}, {"cut", cut}};
    if (chat_) row["template"] = chat_->record_template().Description().at("name");
    return row;
  }

 private:
  const LongBenchTask task_;
  const std::vector<LongBenchExample> examples_;
  const int64_t context_length_;
  const std::optional<RecordEncoder> chat_;
  std::string hash_;
};

std::vector<std::string> NamesInFolder(const jobfile::LongBenchSection& section,
                                       const std::function<void(const std::string&)>& warn) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(section.path)) {
    if (entry.path().extension() != ".jsonl") continue;
    const std::string name = entry.path().stem().string();
    const auto task = LongBenchTasks().find(name);
    if (task == LongBenchTasks().end()) {
      warn(fmt::format("{} is left out: LongBench has no task {}", entry.path().string(), name));
    } else if (!CanScore(task->second)) {
      warn(fmt::format("{} is left out: its score, {}, needs a Chinese word segmenter, which is not built",
                       entry.path().string(), task->second.score));
    } else {
      names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  if (names.empty()) throw UserError(fmt::format("{} has no TASK.jsonl of LongBench that can be scored", section.path));
  return names;
}

const LongBenchTask& NamedTask(const std::string& name) {
  const auto found = LongBenchTasks().find(name);
  if (found == LongBenchTasks().end()) {
    std::string known;
    for (const auto& [task_name, task] : LongBenchTasks()) {
      if (CanScore(task)) known += (known.empty() ? "" : ", ") + task_name;
    }
    throw UserError(fmt::format("evaluation.longbench.tasks: LongBench has no task {}; there are {}", name, known));
  }
  if (!CanScore(found->second)) {
    throw UserError(fmt::format(
        "evaluation.longbench.tasks: {} cannot be scored: {} needs a Chinese word segmenter, which is not built", name,
        found->second.score));
  }
  return found->second;
}

}  // namespace

std::vector<LongBenchExample> ReadLongBenchExamples(const fs::path& path, int64_t examples_max) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UserError("cannot read " + path.string());
  std::vector<LongBenchExample> examples;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (examples_max > 0 && static_cast<int64_t>(examples.size()) == examples_max) break;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    examples.push_back(ParseExample(line, fmt::format("{} line {}", path.string(), number)));
  }
  if (examples.empty()) throw UserError(path.string() + " has no examples");
  return examples;
}

GenerationTasks MakeLongBenchTasks(const jobfile::LongBenchSection& section, int64_t context_length,
                                   const std::optional<RecordEncoder>& chat,
                                   const std::function<void(const std::string&)>& warn) {
  if (!fs::is_directory(section.path)) {
    throw UserError("evaluation.longbench.path: " + section.path + " is no folder");
  }
  const std::vector<std::string> names = section.tasks.empty() ? NamesInFolder(section, warn) : section.tasks;
  GenerationTasks tasks;
  for (const std::string& name : names) {
    const LongBenchTask& task = NamedTask(name);
    if (context_length <= task.answer_tokens + 1) {
      throw UserError(fmt::format("longbench/{}: its longest answer of {} tokens does not fit a context of {}", name,
                                  task.answer_tokens, context_length));
    }
    tasks.push_back(std::make_unique<LongBenchRun>(
        task, ReadLongBenchExamples(fs::path(section.path) / (name + ".jsonl"), section.examples), context_length,
        task.as_it_is ? std::nullopt : chat));
  }
  return tasks;
}

}  // namespace longspan::trainer
