// LongBench from a local folder: TASK.jsonl files with input, context, answers, all_classes and _id, as its authors
// publish them.
//
// Prompts are LongBench's (longbench_tasks.h). One that is longer than the context loses its middle: it and the longest
// answer fit the context together. The cut is made on tokens and not written out as text and read again, as LongBench's
// program does, which moves at most the tokens at the seam. Prompts are plain text, or one message in a chat template,
// as LongBench's program asks chat models: save for its few-shot and code tasks, which it never puts into one.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "worker/trainer/evaluate/generation_task.h"
#include "worker/trainer/evaluate/longbench_tasks.h"

namespace longspan::trainer {

// The examples of a file, at most `examples_max` (0: all). UserError with file and line.
std::vector<LongBenchExample> ReadLongBenchExamples(const std::filesystem::path& path, int64_t examples_max);

// One task a file of the folder, or those that are named. UserError for a folder without any, a named one that has no
// file, that LongBench does not have, or whose score is not built. `warn` hears of files that are left out. Without
// `chat`, prompts are plain text.
GenerationTasks MakeLongBenchTasks(const jobfile::LongBenchSection& section, int64_t context_length,
                                   const std::optional<RecordEncoder>& chat,
                                   const std::function<void(const std::string&)>& warn);

}  // namespace longspan::trainer
