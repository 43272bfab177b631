#include "proto/support/job_spec_messages.h"

#include <google/protobuf/duration.pb.h>

#include <algorithm>

#include "proto/support/check.h"
#include "proto/support/enum_words.h"

namespace longspan::jobfile {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using nlohmann::json;

bool IsDuration(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
         field.message_type() == google::protobuf::Duration::descriptor();
}

// ---- message to document ----

json EnumToJson(const EnumDescriptor& type, int number) {
  const EnumValueDescriptor* value = type.FindValueByNumber(number);
  // A value of a newer client: its number makes the parser list the values it knows.
  return value == nullptr ? json(number) : json(LowerCaseWord(*value));
}

json DurationToJson(const google::protobuf::Duration& duration) {
  // Half a second is no duration of a job file: shown as it came, so that the parser refuses it.
  if (duration.nanos() != 0)
    return std::to_string(static_cast<double>(duration.seconds()) + duration.nanos() * 1e-9) + "s";
  return FormatDurationSeconds(duration.seconds());
}

json MessageToJson(const Message& message);

json ValueToJson(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection.GetString(message, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection.GetInt64(message, &field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.GetDouble(message, &field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(message, &field);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumToJson(*field.enum_type(), reflection.GetEnumValue(message, &field));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (IsDuration(field)) {
        return DurationToJson(static_cast<const google::protobuf::Duration&>(reflection.GetMessage(message, &field)));
      }
      return MessageToJson(reflection.GetMessage(message, &field));
    default:
      CHECK(false) << field.full_name() << " has a type that job files do not have";
      return {};
  }
}

json RepeatedToJson(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  json list = json::array();
  for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      list.push_back(reflection.GetRepeatedString(message, &field, i));
    } else {
      CHECK(field.cpp_type() == FieldDescriptor::CPPTYPE_INT64) << field.full_name();
      list.push_back(reflection.GetRepeatedInt64(message, &field, i));
    }
  }
  return list;
}

// An entry of a map is a message of its own with a key and a value.
json MapToJson(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  const FieldDescriptor* key = field.message_type()->map_key();
  const FieldDescriptor* value = field.message_type()->map_value();
  json map = json::object();
  for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
    const Message& entry = reflection.GetRepeatedMessage(message, &field, i);
    map[entry.GetReflection()->GetString(entry, key)] = ValueToJson(entry, *value);
  }
  return map;
}

bool IsUnspecified(const Message& message, const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM &&
         message.GetReflection()->GetEnumValue(message, &field) == 0;
}

// ListFields gives what is set: present optionals, and plain fields other than zero.
json MessageToJson(const Message& message) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  json document = json::object();
  for (const FieldDescriptor* field : fields) {
    if (field->is_map()) {
      document[field->name()] = MapToJson(message, *field);
    } else if (field->is_repeated()) {
      document[field->name()] = RepeatedToJson(message, *field);
    } else if (!IsUnspecified(message, *field)) {
      document[field->name()] = ValueToJson(message, *field);
    }
  }
  return document;
}

// ---- document to message; the document is our own, so disagreement is a bug ----

void JsonToMessage(const json& document, Message* message);

int EnumNumber(const EnumDescriptor& type, const std::string& word) {
  for (int i = 0; i < type.value_count(); ++i) {
    if (LowerCaseWord(*type.value(i)) == word) return type.value(i)->number();
  }
  CHECK(false) << type.full_name() << " has no value for " << word;
  return 0;
}

void SetValue(const json& value, const FieldDescriptor& field, Message* message);

void SetMap(const json& map, const FieldDescriptor& field, Message* message) {
  for (const auto& [key, value] : map.items()) {
    Message* entry = message->GetReflection()->AddMessage(message, &field);
    entry->GetReflection()->SetString(entry, field.message_type()->map_key(), key);
    SetValue(value, *field.message_type()->map_value(), entry);
  }
}

void SetList(const json& value, const FieldDescriptor& field, Message* message) {
  for (const json& entry : value) {
    if (entry.is_string()) {
      message->GetReflection()->AddString(message, &field, entry.get<std::string>());
    } else {
      message->GetReflection()->AddInt64(message, &field, entry.get<int64_t>());
    }
  }
}

void SetValue(const json& value, const FieldDescriptor& field, Message* message) {
  const Reflection& reflection = *message->GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection.SetString(message, &field, value.get<std::string>());
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection.SetInt64(message, &field, value.get<int64_t>());
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.SetDouble(message, &field, value.get<double>());
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.SetBool(message, &field, value.get<bool>());
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection.SetEnumValue(message, &field, EnumNumber(*field.enum_type(), value.get<std::string>()));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (!IsDuration(field)) return JsonToMessage(value, reflection.MutableMessage(message, &field));
      return static_cast<google::protobuf::Duration*>(reflection.MutableMessage(message, &field))
          ->set_seconds(ParseDurationSeconds(value.get<std::string>()).value());
    default:
      CHECK(false) << field.full_name() << " has a type that job files do not have";
  }
}

void JsonToMessage(const json& document, Message* message) {
  for (const auto& [key, value] : document.items()) {
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(key);
    CHECK(field != nullptr) << message->GetDescriptor()->full_name() << " has no field " << key;
    if (field->is_map()) {
      SetMap(value, *field, message);
    } else if (field->is_repeated()) {
      SetList(value, *field, message);
    } else {
      SetValue(value, *field, message);
    }
  }
}

}  // namespace

v1::JobSpec ToMessage(const JobSpec& spec) {
  v1::JobSpec message;
  JsonToMessage(ToDocument(spec), &message);
  return message;
}

json ToDocument(const v1::JobSpec& message) { return MessageToJson(message); }

Converted FromMessage(const v1::JobSpec& message) {
  Converted converted;
  converted.mistakes = ReadDocument(ToDocument(message), nullptr, &converted.spec);
  return converted;
}

}  // namespace longspan::jobfile
