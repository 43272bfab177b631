// A measurement that generates texts: a list of independent examples, and what their answers add up to.
//
// Tasks are values made from the job file before anything runs, so a wrong folder or an unknown task name is refused at
// once. Run is given a range of the examples, which is how ranks share them; the answers come back as JSON, so that
// they can travel and be kept. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/data/record_encoder.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/generate/generator.h"

namespace longspan::trainer {

// The model under test, and how it is asked. Nothing is owned.
struct TaskModel {
  std::string name;  // "base" | "rescaled" | "extended"
  CausalLm* model = nullptr;
  CausalLm::EvaluationOptions options;
  const Tokenizer* tokenizer = nullptr;
  std::function<std::string(const std::vector<int64_t>&)> decode;  // without special tokens; valid UTF-8
  std::vector<int64_t> end_ids;
  jobfile::GenerationSection generation;
  uint64_t seed = 0;
  int64_t context_length = 0;  // tokens of a prompt and its answer together
};

struct TaskHooks {
  std::function<void()> example_done;
  std::function<bool()> stop_requested;
};

class GenerationTask {
 public:
  virtual ~GenerationTask() = default;

  // "passkey", "topics", "longbench/hotpotqa", "conversations".
  virtual std::string name() const = 0;
  virtual int64_t length() const = 0;  // tokens of the texts; the context length where they have their own
  virtual int64_t examples() const = 0;
  // Everything that decides the answers besides the model; another value makes kept answers worthless.
  virtual nlohmann::json settings() const = 0;

  // One value for each of the examples [begin, end), in order; nothing when it was asked to stop.
  virtual std::optional<std::vector<nlohmann::json>> Run(const TaskModel& model, int64_t begin, int64_t end,
                                                         const TaskHooks& hooks) const = 0;
  // Fields of the result row, from the values of all examples: "score" (0 to 100) where there is one, and details.
  virtual nlohmann::json Summarise(const std::vector<nlohmann::json>& answers) const = 0;
};

using GenerationTasks = std::vector<std::unique_ptr<GenerationTask>>;

// Tokens of a prompt: what the tokenizer puts before a text, and the text.
std::vector<int64_t> PromptTokens(const Tokenizer& tokenizer, std::string_view text);
// The same in a chat template: what stands before the answer at the end of `record`, whose words do not matter.
std::vector<int64_t> ChatTokens(const RecordEncoder& chat, const SftRecord& record);

// Generates with the options of `model`. `first_example` numbers the first prompt for drawing. Empty when stopped.
struct AnswerOptions {
  std::vector<int64_t> end_ids;  // besides the model's
  int64_t min_new_tokens = 0;
  std::vector<std::string> stops;
  bool greedy = false;  // whatever the job says
};
std::optional<std::vector<GeneratedText>> Answer(const TaskModel& model, const std::vector<Prompt>& prompts,
                                                 const AnswerOptions& options, int64_t first_example,
                                                 const TaskHooks& hooks);

}  // namespace longspan::trainer
