// The tasks of LongBench (arXiv 2308.14508) as a table: longbench_tasks.json, built into the program.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace longspan::trainer {

extern const char* const kLongBenchTasksJson;

struct LongBenchTask {
  std::string name;
  std::string score;  // as in scores.h: "qa_f1", "rouge_l", "classification", ..., or one that is not built, "qa_f1_zh"
  std::string category;
  std::string prompt;  // with {context} and {input}
  int64_t answer_tokens = 0;
  bool chinese = false;
  bool first_line = false;       // only the first line of an answer counts
  bool as_it_is = false;         // the prompt is never put into a chat template
  bool ends_at_newline = false;  // an answer ends at its first newline, and has at least one token
};

const std::map<std::string, LongBenchTask>& LongBenchTasks();
// Whether this program can score it: Chinese words need a segmenter that is not built in.
bool CanScore(const LongBenchTask& task);

struct LongBenchExample {
  std::string input, context;
  std::vector<std::string> answers;
  std::vector<std::string> all_classes;
  std::string id;
};

// The prompt of an example: every {context} and {input} replaced, once, so that braces in a text stay.
std::string PromptOf(const LongBenchTask& task, const LongBenchExample& example);
// In [0, 1]: the best over the right answers. Requires CanScore(task).
double ScoreOf(const LongBenchTask& task, const LongBenchExample& example, std::string_view prediction);

// Keeps the two ends of a prompt that has more than `tokens_max`, half of that each, as LongBench does.
std::vector<int64_t> TruncatedInTheMiddle(std::vector<int64_t> tokens, int64_t tokens_max);

// LongBench's averages over English tasks, of scores by task in 0 to 100. NaN where there is none.
struct LongBenchAverages {
  double tasks = 0;       // over the tasks
  double categories = 0;  // over the categories' means, which is what the paper's table and LongLoRA's row show
};
LongBenchAverages AverageOf(const std::map<std::string, double>& scores);

}  // namespace longspan::trainer
