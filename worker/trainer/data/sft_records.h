// Instruction and chat records (supervised fine-tuning): what a JSON object must hold to be one, and what it says.
//
//   instruction  {"instruction": "...", "input": "...", "output": "..."}       input may be absent or empty
//   chat         {"messages": [{"role": "user", "content": "..."}, ...]}       or as ShareGPT writes them:
//                {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
//
// A conversation is at most one system message, then user and assistant in turns, the last of them the assistant's.
// Further fields are ignored. Pure; texts stay as they are (templates may strip them).
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "proto/jobfile/job_spec.h"

namespace longspan::trainer {

// What is wrong with a record and what would be right; its place is added by who knows it.
class RecordError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Instruction {
  std::string instruction;
  std::string input;   // often empty
  std::string output;  // never blank
};

enum class Role { kSystem, kUser, kAssistant };
const char* NameOf(Role role);  // "system", "user", "assistant", as records and templates have them

struct Message {
  Role role = Role::kUser;
  std::string content;  // of the assistant, never blank
};

struct Conversation {
  std::vector<Message> messages;
};

using SftRecord = std::variant<Instruction, Conversation>;

// One JSON object. Throws RecordError for anything else, for a key that stands twice in an object, and for nesting
// deeper than kRecordDepthMax (which no record needs).
inline constexpr size_t kRecordDepthMax = 64;
nlohmann::json ParseRecord(std::string_view text);

// The format whose fields the record has; records that hold a finished text beside instruction and output (as Alpaca's
// do) are instructions. Empty: none of them.
std::optional<jobfile::DataFormat> FormatOfRecord(const nlohmann::json& record, const std::string& text_field);

// Each takes the texts out of `record`. Throw RecordError.
std::string TakeText(nlohmann::json& record, const std::string& text_field);
SftRecord TakeSftRecord(nlohmann::json& record, jobfile::DataFormat format);  // kInstruction or kChat

}  // namespace longspan::trainer
