// Multi-turn questions, answered turn by turn and written for an outside judge. There is no judge here, and no score.
//
// Read: .jsonl files, one conversation a line, with "turns", a list of the user's texts (MT-Bench's question.jsonl), or
// "conv", a list of objects whose "user" is that text (MT-Eval). "question_id" or "id" and "category" are kept where
// they are. Long-MT-Bench+ is read once its records are brought into the first form.
//
// Each turn is asked with all turns and answers before it, as lines "USER: ..." and "ASSISTANT: ..." or in a chat
// template; an answer ends at an end token, without a template at a line that begins with "USER:", or at
// max_new_tokens. A prompt that does not fit the context with its answer loses its middle. Results are in the form of
// MT-Bench's model_answer files, which FastChat's judge reads.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "worker/trainer/evaluate/generation_task.h"

namespace longspan::trainer {

struct ConversationQuestions {
  nlohmann::json id;
  std::string category;
  std::vector<std::string> turns;  // at least one
};

// Of a .jsonl file, or of all those in a folder, by path. UserError with file and line.
std::vector<ConversationQuestions> ReadConversations(const std::filesystem::path& path);

// What the model reads before it answers turn answers.size() + 1.
std::string ConversationPrompt(const std::vector<std::string>& turns, const std::vector<std::string>& answers);

// The same for a chat template, with an empty answer at the end.
Conversation ConversationRecord(const std::vector<std::string>& turns, const std::vector<std::string>& answers);

// Without `chat`, prompts are plain text.
std::unique_ptr<GenerationTask> MakeConversationsTask(const jobfile::ConversationsSection& section,
                                                      int64_t context_length, const std::optional<RecordEncoder>& chat);

}  // namespace longspan::trainer
