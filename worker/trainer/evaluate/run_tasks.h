// Runs generation tasks for the models under test, shares their examples between ranks, and keeps what is done.
//
//   <work>/evaluation/<model>/<task>[-<length>].jsonl    every answer, one a line
//                                           ....json     the result row, and what it was made with
//
// A task whose .json was made with the same checkpoint, settings and generation options is not run again: a restarted
// evaluation goes on with the first task that is not whole. Ranks agree on that through rank 0, and meet after every
// task; its answers travel through the store.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "worker/trainer/evaluate/generation_task.h"
#include "worker/trainer/parallel/communicator.h"

namespace longspan::trainer {

// What a job file asks for besides perplexity; empty where it asks for nothing. `warn` hears of lengths and files that
// are left out. The tokenizer outlives the tasks. UserError for a folder, file or template that cannot be used.
GenerationTasks MakeGenerationTasks(const jobfile::JobSpec& spec, const Tokenizer& tokenizer,
                                    const std::function<void(const std::string&)>& warn);
bool AsksForGeneration(const jobfile::EvaluationSection& section);

struct TaskRunOptions {
  std::filesystem::path work;
  std::string checkpoint;  // name of what is measured
  int64_t step = 0;
  std::string model_path, adapter_path;  // as the job file has them
};

struct TaskRunHooks {
  std::function<void(const nlohmann::json& row)> row;       // on rank 0, as each is known; kept ones too
  std::function<void(int64_t done, int64_t all)> progress;  // examples of this rank
  std::function<bool()> stop_requested;
  std::function<void()> keep_waiting;  // for other ranks; may throw
};

struct TaskRunResult {
  std::vector<nlohmann::json> rows;  // on rank 0
  bool stopped = false;
};

// A row has model, task, length, examples, step, and what the task's Summarise gives: score (0 to 100) where there is
// one, and details.
TaskRunResult RunGenerationTasks(const GenerationTasks& tasks, const std::vector<TaskModel>& models,
                                 Communicator& ranks, const TaskRunOptions& options, const TaskRunHooks& hooks);

}  // namespace longspan::trainer
