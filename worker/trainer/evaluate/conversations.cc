#include "worker/trainer/evaluate/conversations.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "worker/storage/sha256.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/evaluate/longbench_tasks.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::string_view kUserTurn = "\nUSER:";

std::vector<std::string> TurnsOf(const json& record, const std::string& where) {
  const bool plain = record.contains("turns");
  const json turns = record.value(plain ? "turns" : "conv", json());
  if (!turns.is_array() || turns.empty()) {
    throw UserError(fmt::format(R"(cannot read {}: it needs "turns", a list of texts, or "conv", a list of objects )"
                                R"(with "user")",
                                where));
  }
  std::vector<std::string> texts;
  for (const json& turn : turns) {
    const json text = plain ? turn : turn.is_object() ? turn.value("user", json()) : json();
    if (!text.is_string()) throw UserError(fmt::format("cannot read {}: a turn is no text", where));
    texts.push_back(text.get<std::string>());
  }
  return texts;
}

void ReadFile(const fs::path& path, std::vector<ConversationQuestions>* conversations) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UserError("cannot read " + path.string());
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{} line {}", path.string(), number);
    const json record = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!record.is_object()) throw UserError(fmt::format("cannot read {}: it is no JSON object", where));
    ConversationQuestions questions;
    questions.id = record.contains("question_id") ? record["question_id"]
                   : record.contains("id")        ? record["id"]
                                                  : json(conversations->size() + 1);
    if (record.contains("category") && record["category"].is_string()) {
      questions.category = record["category"].get<std::string>();
    }
    questions.turns = TurnsOf(record, where);
    conversations->push_back(std::move(questions));
  }
}

class ConversationsTask : public GenerationTask {
 public:
  ConversationsTask(std::vector<ConversationQuestions> conversations, int64_t max_new_tokens, int64_t context_length,
                    std::optional<RecordEncoder> chat)
      : conversations_(std::move(conversations)),
        max_new_tokens_(max_new_tokens),
        context_length_(context_length),
        chat_(std::move(chat)) {
    storage::Sha256 hash;
    for (const ConversationQuestions& questions : conversations_) {
      hash.Add(json{questions.id, questions.category, questions.turns}.dump());
    }
    hash_ = hash.Hex();
  }

  std::string name() const override { return "conversations"; }
  int64_t length() const override { return context_length_; }
  int64_t examples() const override { return static_cast<int64_t>(conversations_.size()); }
  json settings() const override {
    json settings = {{"conversations", hash_}, {"max_new_tokens", max_new_tokens_}};
    if (chat_) settings["template"] = chat_->record_template().Description();
    return settings;
  }

  std::optional<std::vector<json>> Run(const TaskModel& model, int64_t begin, int64_t end,
                                       const TaskHooks& hooks) const override {
    std::vector<std::vector<std::string>> answers(static_cast<size_t>(end - begin));
    TaskHooks turn_hooks;  // progress counts conversations, not turns
    turn_hooks.stop_requested = hooks.stop_requested;
    for (size_t turn = 0;; ++turn) {
      std::vector<size_t> asked;
      for (size_t index = 0; index < answers.size(); ++index) {
        if (turn < Questions(begin, index).turns.size()) asked.push_back(index);
      }
      if (asked.empty()) break;
      if (!AskTurn(model, begin, asked, turn_hooks, &answers)) return std::nullopt;
      for (const size_t index : asked) {
        if (turn + 1 == Questions(begin, index).turns.size() && hooks.example_done) hooks.example_done();
      }
    }
    std::vector<json> results;
    for (size_t index = 0; index < answers.size(); ++index) {
      const ConversationQuestions& questions = Questions(begin, index);
      results.push_back({{"question_id", questions.id},
                         {"category", questions.category},
                         {"model_id", model.name},
                         {"choices", json::array({{{"index", 0}, {"turns", answers[index]}}})}});
    }
    return results;
  }

  json Summarise(const std::vector<json>& answers) const override {
    int64_t turns = 0;
    for (const ConversationQuestions& questions : conversations_) {
      turns += static_cast<int64_t>(questions.turns.size());
    }
    json row = {{"conversations", answers.size()}, {"turns", turns}, {"judge", "none included"}};
    if (chat_) row["template"] = chat_->record_template().Description().at("name");
    return row;
  }

 private:
  const ConversationQuestions& Questions(int64_t begin, size_t index) const {
    return conversations_[static_cast<size_t>(begin) + index];
  }

  std::vector<int64_t> TurnTokens(const TaskModel& model, const std::vector<std::string>& turns,
                                  const std::vector<std::string>& answers) const {
    return chat_ ? ChatTokens(*chat_, ConversationRecord(turns, answers))
                 : PromptTokens(*model.tokenizer, ConversationPrompt(turns, answers));
  }

  bool AskTurn(const TaskModel& model, int64_t begin, const std::vector<size_t>& asked, const TaskHooks& hooks,
               std::vector<std::vector<std::string>>* answers) const {
    std::vector<Prompt> prompts;
    for (const size_t index : asked) {
      std::vector<int64_t> tokens = TurnTokens(model, Questions(begin, index).turns, (*answers)[index]);
      prompts.push_back({TruncatedInTheMiddle(std::move(tokens), context_length_ - max_new_tokens_), max_new_tokens_});
    }
    AnswerOptions options;
    if (chat_) {
      options.end_ids = {chat_->answer_end()};
    } else {
      options.stops = {std::string(kUserTurn)};
    }
    const auto texts = Answer(model, prompts, options, begin, hooks);
    if (!texts) return false;
    for (size_t place = 0; place < asked.size(); ++place) {
      std::string text = model.decode((*texts)[place].tokens);
      if (!chat_) text = text.substr(0, text.find(kUserTurn));
      text.erase(0, std::min(text.find_first_not_of(' '), text.size()));
      (*answers)[asked[place]].push_back(std::move(text));
    }
    return true;
  }

  const std::vector<ConversationQuestions> conversations_;
  const int64_t max_new_tokens_;
  const int64_t context_length_;
  const std::optional<RecordEncoder> chat_;
  std::string hash_;
};

}  // namespace

std::vector<ConversationQuestions> ReadConversations(const fs::path& path) {
  std::vector<fs::path> files;
  if (fs::is_directory(path)) {
    for (const auto& entry : fs::directory_iterator(path)) {
      if (entry.path().extension() == ".jsonl") files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
  } else {
    files.push_back(path);
  }
  std::vector<ConversationQuestions> conversations;
  for (const fs::path& file : files) ReadFile(file, &conversations);
  if (conversations.empty()) throw UserError(path.string() + " has no conversations");
  return conversations;
}

std::string ConversationPrompt(const std::vector<std::string>& turns, const std::vector<std::string>& answers) {
  std::string text;
  for (size_t turn = 0; turn <= answers.size(); ++turn) {
    text += fmt::format("{}USER: {}\nASSISTANT:", turn > 0 ? "\n" : "", turns[turn]);
    if (turn < answers.size()) text += " " + answers[turn];
  }
  return text;
}

Conversation ConversationRecord(const std::vector<std::string>& turns, const std::vector<std::string>& answers) {
  Conversation record;
  for (size_t turn = 0; turn <= answers.size(); ++turn) {
    record.messages.push_back({Role::kUser, turns[turn]});
    record.messages.push_back({Role::kAssistant, turn < answers.size() ? answers[turn] : ""});
  }
  return record;
}

std::unique_ptr<GenerationTask> MakeConversationsTask(const jobfile::ConversationsSection& section,
                                                      int64_t context_length,
                                                      const std::optional<RecordEncoder>& chat) {
  if (context_length <= section.max_new_tokens + 1) {
    throw UserError(
        fmt::format("evaluation.conversations.max_new_tokens is {}, which leaves no room for a question in a context "
                    "of {}",
                    section.max_new_tokens, context_length));
  }
  return std::make_unique<ConversationsTask>(ReadConversations(section.path), section.max_new_tokens, context_length,
                                             chat);
}

}  // namespace longspan::trainer
