// `longspan-trainer generate`: continues given prompts, for looking at a model and for comparing with other programs.
#pragma once

#include <cstdint>
#include <string>

namespace longspan::trainer {

struct GenerateOptions {
  std::string spec_path;           // model, method.adapter, rope, context_length and evaluation.generation are read
  std::string prompts_path;        // .jsonl: {"tokens": [1, 2, 3]} or {"text": "..."}, which gets the tokenizer's BOS
  std::string out_path;            // .jsonl, one line a prompt: tokens, text where it can be told, end
  std::string model = "extended";  // base: as the folder has it; rescaled: the job's positions; extended: both
  int64_t max_new_tokens = 128;
  bool ignore_end = false;      // go on behind the model's end tokens
  std::string device = "auto";  // device.h
};

// Throws what errors.h lists.
void GenerateTexts(const GenerateOptions& options);

}  // namespace longspan::trainer
