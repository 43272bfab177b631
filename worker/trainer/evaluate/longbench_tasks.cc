#include "worker/trainer/evaluate/longbench_tasks.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "proto/support/check.h"
#include "worker/trainer/evaluate/scores.h"

namespace longspan::trainer {
namespace {

constexpr std::string_view kScores[] = {"qa_f1",     "rouge_l",      "classification", "count",
                                        "retrieval", "retrieval_zh", "code_similarity"};

std::map<std::string, LongBenchTask> ReadTasks() {
  std::map<std::string, LongBenchTask> tasks;
  const nlohmann::json table = nlohmann::json::parse(kLongBenchTasksJson);
  for (const auto& [name, row] : table.at("tasks").items()) {
    LongBenchTask& task = tasks[name];
    task.name = name;
    row.at("score").get_to(task.score);
    row.at("category").get_to(task.category);
    row.at("prompt").get_to(task.prompt);
    row.at("answer_tokens").get_to(task.answer_tokens);
    task.chinese = row.value("chinese", false);
    task.first_line = row.value("first_line", false);
    task.as_it_is = row.value("as_it_is", false);
    task.ends_at_newline = row.value("ends_at_newline", false);
  }
  return tasks;
}

double ScoreOne(const LongBenchTask& task, const LongBenchExample& example, std::string_view prediction,
                const std::string& answer) {
  if (task.score == "qa_f1") return QuestionAnswerF1(prediction, answer);
  if (task.score == "rouge_l") return RougeL(prediction, answer);
  if (task.score == "classification") return ClassificationScore(prediction, answer, example.all_classes);
  if (task.score == "count") return CountScore(prediction, answer);
  if (task.score == "retrieval") return RetrievalScore(prediction, answer, "Paragraph ");
  if (task.score == "retrieval_zh") return RetrievalScore(prediction, answer, "段落");
  CHECK(task.score == "code_similarity") << "no score " << task.score;
  return CodeSimilarity(prediction, answer);
}

double MeanOf(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? NAN : sum / static_cast<double>(values.size());
}

}  // namespace

const std::map<std::string, LongBenchTask>& LongBenchTasks() {
  static const std::map<std::string, LongBenchTask> tasks = ReadTasks();
  return tasks;
}

bool CanScore(const LongBenchTask& task) {
  return std::find(std::begin(kScores), std::end(kScores), task.score) != std::end(kScores);
}

std::string PromptOf(const LongBenchTask& task, const LongBenchExample& example) {
  static constexpr std::string_view kContext = "{context}", kInput = "{input}";
  std::string prompt;
  for (std::string_view rest = task.prompt; !rest.empty();) {
    if (rest.starts_with(kContext)) {
      prompt += example.context;
      rest.remove_prefix(kContext.size());
    } else if (rest.starts_with(kInput)) {
      prompt += example.input;
      rest.remove_prefix(kInput.size());
    } else {
      prompt += rest.front();
      rest.remove_prefix(1);
    }
  }
  return prompt;
}

double ScoreOf(const LongBenchTask& task, const LongBenchExample& example, std::string_view prediction) {
  if (task.first_line) {
    prediction.remove_prefix(std::min(prediction.find_first_not_of('\n'), prediction.size()));
    prediction = prediction.substr(0, prediction.find('\n'));
  }
  double best = 0;
  for (const std::string& answer : example.answers) {
    best = std::max(best, ScoreOne(task, example, prediction, answer));
  }
  return best;
}

std::vector<int64_t> TruncatedInTheMiddle(std::vector<int64_t> tokens, int64_t tokens_max) {
  const auto count = static_cast<int64_t>(tokens.size());
  if (count <= tokens_max) return tokens;
  const int64_t half = tokens_max / 2;
  tokens.erase(tokens.begin() + half, tokens.end() - half);
  return tokens;
}

LongBenchAverages AverageOf(const std::map<std::string, double>& scores) {
  std::vector<double> all;
  std::map<std::string, std::vector<double>> by_category;
  for (const auto& [name, score] : scores) {
    const auto task = LongBenchTasks().find(name);
    if (task == LongBenchTasks().end() || task->second.chinese) continue;
    all.push_back(score);
    by_category[task->second.category].push_back(score);
  }
  std::vector<double> categories;
  for (const auto& [category, values] : by_category) categories.push_back(MeanOf(values));
  return {MeanOf(all), MeanOf(categories)};
}

}  // namespace longspan::trainer
