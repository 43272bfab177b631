#include "worker/trainer/evaluate/run_tasks.h"

#include <fmt/format.h>

#include <fstream>
#include <optional>
#include <utility>

#include "proto/jobfile/enum_names.h"
#include "worker/storage/storage.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/evaluate/conversations.h"
#include "worker/trainer/evaluate/longbench.h"
#include "worker/trainer/evaluate/passkey.h"
#include "worker/trainer/evaluate/topics.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Answers = std::vector<json>;

constexpr const char* kStopped = "stopped";

class TaskRun {
 public:
  TaskRun(const GenerationTasks& tasks, const std::vector<TaskModel>& models, Communicator& ranks,
          const TaskRunOptions& options, const TaskRunHooks& hooks)
      : tasks_(tasks), models_(models), ranks_(ranks), options_(options), hooks_(hooks) {
    for (const auto& task : tasks_) all_ += ShareOf(*task) * static_cast<int64_t>(models_.size());
  }

  TaskRunResult Run() {
    for (const auto& task : tasks_) {
      for (const TaskModel& model : models_) {
        if (!RunOne(*task, model)) {
          result_.stopped = true;
          return std::move(result_);
        }
      }
    }
    return std::move(result_);
  }

 private:
  bool speaks() const { return ranks_.rank() == 0; }
  BatchSlice SliceOf(const GenerationTask& task) const {
    return SliceOfRank(task.examples(), ranks_.rank(), ranks_.world_size());
  }
  int64_t ShareOf(const GenerationTask& task) const { return SliceOf(task).end - SliceOf(task).begin; }

  // "passkey-4096", "longbench/hotpotqa".
  static std::string FileName(const GenerationTask& task) {
    const bool by_length = task.name() == "passkey" || task.name() == "topics";
    return by_length ? fmt::format("{}-{}", task.name(), task.length()) : task.name();
  }

  // What an answer was made with.
  json Origin(const GenerationTask& task, const TaskModel& model) const {
    return {{"checkpoint", options_.checkpoint},
            {"model_path", options_.model_path},
            {"adapter_path", options_.adapter_path},
            {"task", task.name()},
            {"length", task.length()},
            {"context_length", model.context_length},
            {"settings", task.settings()},
            {"temperature", model.generation.temperature},
            {"top_p", model.generation.top_p},
            {"seed", model.seed}};
  }

  // The row of a task that is whole already.
  static std::optional<json> KeptRow(const fs::path& path, const json& origin) {
    std::ifstream file(path);
    const json kept = json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (!kept.is_object() || !kept.contains("origin") || kept["origin"] != origin || !kept.contains("row")) return {};
    return kept["row"];
  }

  // False when some rank was asked to stop.
  bool RunOne(const GenerationTask& task, const TaskModel& model) {
    const std::string key = fmt::format("task/{}/{}", model.name, FileName(task));
    const fs::path path = options_.work / "evaluation" / model.name / (FileName(task) + ".json");
    const json origin = Origin(task, model);
    std::optional<json> row;
    if (speaks()) {
      row = KeptRow(path, origin);
      ranks_.Publish(key + "/plan", row ? "kept" : "run");
    } else if (ranks_.Get(key + "/plan", hooks_.keep_waiting) == "kept") {
      row = json();
    }
    if (row) {
      done_ += ShareOf(task);
      TellProgress();
      if (speaks()) Take(*std::move(row));
      return true;
    }
    const std::optional<Answers> answers = Shared(key, Generate(task, model));
    if (!answers) return false;
    if (speaks()) Keep(task, model, path, origin, *answers);
    return true;
  }

  std::optional<Answers> Generate(const GenerationTask& task, const TaskModel& model) {
    TellProgress();
    TaskHooks hooks;
    hooks.stop_requested = hooks_.stop_requested;
    hooks.example_done = [this] {
      ++done_;
      TellProgress();
    };
    const BatchSlice slice = SliceOf(task);
    if (slice.begin == slice.end) return Answers();
    return task.Run(model, slice.begin, slice.end, hooks);
  }

  // Brings the answers of all ranks to rank 0; the others get none. Empty when some rank stopped.
  std::optional<Answers> Shared(const std::string& key, std::optional<Answers> own) {
    if (ranks_.world_size() == 1) return own;
    if (!speaks()) {
      ranks_.Publish(fmt::format("{}/{}", key, ranks_.rank()), own ? json(*own).dump() : std::string(kStopped));
      if (ranks_.Get(key + "/verdict", hooks_.keep_waiting) == kStopped) return std::nullopt;
      return Answers();
    }
    bool stopped = !own;
    for (int64_t rank = 1; rank < ranks_.world_size(); ++rank) {
      const std::string told = ranks_.Get(fmt::format("{}/{}", key, rank), hooks_.keep_waiting);
      if (told == kStopped) stopped = true;
      if (stopped) continue;
      for (json& answer : json::parse(told)) own->push_back(std::move(answer));
    }
    ranks_.Publish(key + "/verdict", stopped ? kStopped : "done");
    if (stopped) return std::nullopt;
    return own;
  }

  void Keep(const GenerationTask& task, const TaskModel& model, const fs::path& path, const json& origin,
            const Answers& answers) {
    json row = task.Summarise(answers);
    row["model"] = model.name;
    row["task"] = task.name();
    row["length"] = task.length();
    row["examples"] = task.examples();
    row["step"] = options_.step;
    row["answers"] = fs::path("evaluation") / model.name / (FileName(task) + ".jsonl");
    fs::create_directories(path.parent_path());
    std::string lines;
    for (const json& answer : answers) lines += answer.dump() + "\n";
    storage::WriteFileAtomically(fs::path(path).replace_extension(".jsonl"), lines);
    storage::WriteFileAtomically(path, json{{"origin", origin}, {"row", row}}.dump(2) + "\n");
    Take(std::move(row));
  }

  void Take(json row) {
    if (hooks_.row) hooks_.row(row);
    result_.rows.push_back(std::move(row));
  }

  void TellProgress() {
    if (hooks_.progress) hooks_.progress(done_, all_);
  }

  const GenerationTasks& tasks_;
  const std::vector<TaskModel>& models_;
  Communicator& ranks_;
  const TaskRunOptions& options_;
  const TaskRunHooks& hooks_;
  int64_t done_ = 0, all_ = 0;
  TaskRunResult result_;
};

template <typename Section, typename Make>
void AddByLength(const Section& section, const char* name, const Make& make,
                 const std::function<void(const std::string&)>& warn, GenerationTasks* tasks) {
  for (const int64_t length : section.lengths) {
    if (auto task = make(section, length)) {
      tasks->push_back(std::move(task));
    } else {
      warn(fmt::format("no {} at {} tokens: its text is longer even without filler", name, length));
    }
  }
}

// How chats are written, where the job asks for that.
std::optional<RecordEncoder> ChatOf(const jobfile::JobSpec& spec, const Tokenizer& tokenizer) {
  const jobfile::PromptTemplate wanted = spec.evaluation.prompt_template;
  if (wanted == jobfile::PromptTemplate::kNone) return std::nullopt;
  std::optional<jobfile::ChatTemplate> named;  // none: the model's own
  for (const auto& [kind, name] : jobfile::EnumNames<jobfile::ChatTemplate>::kValues) {
    if (name == jobfile::NameOf(wanted)) named = kind;
  }
  return RecordEncoder(tokenizer, ChooseTemplate(named, spec.model.path, "evaluation.template"), spec.context_length);
}

}  // namespace

bool AsksForGeneration(const jobfile::EvaluationSection& section) {
  return !section.passkey.lengths.empty() || !section.topics.lengths.empty() || !section.longbench.path.empty() ||
         !section.conversations.path.empty();
}

GenerationTasks MakeGenerationTasks(const jobfile::JobSpec& spec, const Tokenizer& tokenizer,
                                    const std::function<void(const std::string&)>& warn) {
  const jobfile::EvaluationSection& section = spec.evaluation;
  const auto seed = static_cast<uint64_t>(spec.training.seed);
  GenerationTasks tasks;
  AddByLength(
      section.passkey, "passkey",
      [&](const auto& own, int64_t length) { return MakePasskeyTask(own, length, seed, tokenizer); }, warn, &tasks);
  AddByLength(
      section.topics, "topics",
      [&](const auto& own, int64_t length) { return MakeTopicsTask(own, length, seed, tokenizer); }, warn, &tasks);
  const std::optional<RecordEncoder> chat = ChatOf(spec, tokenizer);
  if (!section.longbench.path.empty()) {
    for (auto& task : MakeLongBenchTasks(section.longbench, spec.context_length, chat, warn)) {
      tasks.push_back(std::move(task));
    }
  }
  if (!section.conversations.path.empty()) {
    tasks.push_back(MakeConversationsTask(section.conversations, spec.context_length, chat));
  }
  return tasks;
}

TaskRunResult RunGenerationTasks(const GenerationTasks& tasks, const std::vector<TaskModel>& models,
                                 Communicator& ranks, const TaskRunOptions& options, const TaskRunHooks& hooks) {
  return TaskRun(tasks, models, ranks, options, hooks).Run();
}

}  // namespace longspan::trainer
