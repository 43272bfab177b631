#include "worker/trainer/data/sft_records.h"

#include <fmt/format.h>

#include <set>

#include "proto/jobfile/enum_names.h"
#include "proto/support/check.h"
#include "worker/trainer/data/white_space.h"

namespace longspan::trainer {
namespace {

using jobfile::DataFormat;
using nlohmann::json;

constexpr const char* kListNames[] = {"messages", "conversations"};

// nlohmann's messages begin with "[json.exception.parse_error.101] ".
std::string WithoutPrefix(std::string_view message) {
  const size_t end = message.find("] ");
  return std::string(end == std::string_view::npos ? message : message.substr(end + 2));
}

// A string of the file inside a message.
std::string Shown(const std::string& text) {
  const json quoted = text.size() <= 40 ? text : text.substr(0, 40) + "...";
  return quoted.dump(-1, ' ', false, json::error_handler_t::replace);
}

// The record's own fields that hold a string, for whoever named the wrong one.
std::string StringFields(const json& record) {
  std::string names;
  for (const auto& [name, value] : record.items()) {
    if (value.is_string() && names.size() < 200) names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

std::string Hint(const json& record, DataFormat wanted, const std::string& text_field) {
  const auto found = FormatOfRecord(record, text_field);
  if (found && *found != wanted) {
    return fmt::format("; the record looks like {} data: set data.format to {}, and keep other data in its own job",
                       jobfile::NameOf(*found), jobfile::NameOf(*found));
  }
  const std::string names = StringFields(record);
  if (wanted != DataFormat::kText || names.empty()) return "";
  return "; data.text_field may name another field: the record has " + names;
}

std::string TakeString(json& object, const char* name, const std::string& where, const std::string& hint) {
  const auto field = object.find(name);
  if (field == object.end()) throw RecordError(fmt::format("{}\"{}\" is missing{}", where, name, hint));
  if (!field->is_string()) {
    throw RecordError(fmt::format("{}\"{}\" is a {}; a string is needed", where, name, field->type_name()));
  }
  return std::move(field->get_ref<std::string&>());
}

void RefuseBlank(const std::string& text, const std::string& what) {
  if (!StripWhiteSpace(text).empty()) return;
  throw RecordError(fmt::format("{} is empty: there is nothing to learn; fill it in or remove the record", what));
}

Instruction TakeInstruction(json& record) {
  const std::string hint = Hint(record, DataFormat::kInstruction, "text");
  Instruction result;
  result.instruction = TakeString(record, "instruction", "", hint);
  if (record.contains("input") && !record["input"].is_null()) result.input = TakeString(record, "input", "", "");
  result.output = TakeString(record, "output", "", hint);
  RefuseBlank(result.output, "\"output\"");
  return result;
}

Role RoleOf(const std::string& name, const std::string& where) {
  if (name == "user" || name == "human") return Role::kUser;
  if (name == "assistant" || name == "gpt") return Role::kAssistant;
  if (name == "system") return Role::kSystem;
  throw RecordError(
      fmt::format("{}the role {} is not known; system, user (human) and assistant (gpt) are", where, Shown(name)));
}

Message TakeMessage(json& message, const std::string& where) {
  if (!message.is_object()) {
    throw RecordError(
        fmt::format("{}it is a {}; an object with \"role\" and \"content\" is needed", where, message.type_name()));
  }
  if (message.contains("tool_calls") && !message["tool_calls"].is_null() && !message["tool_calls"].empty()) {
    throw RecordError(where + "it calls tools, which no template here writes; remove the record");
  }
  const bool share_gpt = message.contains("from") && !message.contains("role");
  Message result;
  result.role = RoleOf(TakeString(message, share_gpt ? "from" : "role", where, ""), where);
  result.content = TakeString(message, share_gpt ? "value" : "content", where, "");
  if (result.role == Role::kAssistant) RefuseBlank(result.content, where + "the answer");
  return result;
}

// At most one system message, then user and assistant in turns.
void CheckTurn(const std::vector<Message>& before, Role role, const std::string& where) {
  if (role == Role::kSystem && before.empty()) return;
  const bool user_is_next = before.empty() || before.back().role != Role::kUser;
  const Role expected = user_is_next ? Role::kUser : Role::kAssistant;
  if (role == expected) return;
  throw RecordError(
      fmt::format("{}the role is {} where {} is due: after at most one system message, user and "
                  "assistant take turns",
                  where, NameOf(role), NameOf(expected)));
}

Conversation TakeConversation(json& record) {
  const char* name = record.contains(kListNames[0]) ? kListNames[0] : kListNames[1];
  const auto list = record.find(name);
  if (list == record.end()) {
    throw RecordError("\"messages\" is missing" + Hint(record, DataFormat::kChat, "text"));
  }
  if (!list->is_array()) {
    throw RecordError(fmt::format("\"{}\" is a {}; an array of messages is needed", name, list->type_name()));
  }
  Conversation result;
  for (json& message : *list) {
    const std::string where = fmt::format("message {} of \"{}\": ", result.messages.size() + 1, name);
    Message taken = TakeMessage(message, where);
    CheckTurn(result.messages, taken.role, where);
    result.messages.push_back(std::move(taken));
  }
  if (result.messages.empty()) throw RecordError(fmt::format("\"{}\" is empty; a conversation is needed", name));
  if (result.messages.back().role != Role::kAssistant) {
    throw RecordError(
        fmt::format("the last message of \"{}\" is of role {}: a conversation ends with an answer of the "
                    "assistant",
                    name, NameOf(result.messages.back().role)));
  }
  return result;
}

}  // namespace

const char* NameOf(Role role) {
  switch (role) {
    case Role::kSystem:
      return "system";
    case Role::kUser:
      return "user";
    case Role::kAssistant:
      return "assistant";
  }
  return "?";
}

json ParseRecord(std::string_view text) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  size_t depth = 0;
  const json::parser_callback_t watch = [&](int, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
        keys.emplace_back();
        [[fallthrough]];
      case json::parse_event_t::array_start:
        if (++depth > kRecordDepthMax) {
          throw RecordError(fmt::format("it is nested deeper than {} levels, which is no record", kRecordDepthMax));
        }
        break;
      case json::parse_event_t::key:
        if (!keys.back().insert(parsed.get<std::string>()).second) {
          throw RecordError(fmt::format("the key {} stands twice in one object", Shown(parsed.get<std::string>())));
        }
        break;
      case json::parse_event_t::object_end:
        keys.pop_back();
        [[fallthrough]];
      case json::parse_event_t::array_end:
        --depth;
        break;
      case json::parse_event_t::value:
        break;
    }
    return true;
  };
  json record;
  try {
    record = json::parse(text, watch);
  } catch (const json::exception& error) {
    throw RecordError("it is not JSON: " + WithoutPrefix(error.what()));
  }
  if (!record.is_object()) {
    throw RecordError(fmt::format("a JSON {} stands where an object is needed", record.type_name()));
  }
  return record;
}

std::optional<DataFormat> FormatOfRecord(const json& record, const std::string& text_field) {
  const bool chat = record.contains(kListNames[0]) || record.contains(kListNames[1]);
  if (chat) return DataFormat::kChat;
  if (record.contains("instruction") && record.contains("output")) return DataFormat::kInstruction;
  if (record.contains(text_field) && record[text_field].is_string()) return DataFormat::kText;
  return std::nullopt;
}

std::string TakeText(json& record, const std::string& text_field) {
  return TakeString(record, text_field.c_str(), "", Hint(record, DataFormat::kText, text_field));
}

SftRecord TakeSftRecord(json& record, DataFormat format) {
  CHECK(format != DataFormat::kText);
  if (format == DataFormat::kInstruction) return TakeInstruction(record);
  return TakeConversation(record);
}

}  // namespace longspan::trainer
