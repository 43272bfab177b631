#include "client/message_json.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cmath>

#include "google/protobuf/duration.pb.h"
#include "longspan/v1/job.pb.h"
#include "proto/jobfile/job_file.h"
#include "proto/support/enum_words.h"
#include "proto/support/job_spec_messages.h"

namespace longspan::client {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using nlohmann::ordered_json;

ordered_json NumberToJson(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

ordered_json EnumToJson(const FieldDescriptor& field, int number) {
  const auto* value = field.enum_type()->FindValueByNumber(number);
  return value == nullptr ? std::to_string(number) : UpperCaseWord(*value);
}

// `index` is -1 for a field that is not repeated.
ordered_json ValueToJson(const Message& message, const FieldDescriptor& field, int index) {
  const Reflection& r = *message.GetReflection();
  const bool one = index < 0;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return one ? r.GetBool(message, &field) : r.GetRepeatedBool(message, &field, index);
    case FieldDescriptor::CPPTYPE_INT32:
      return one ? r.GetInt32(message, &field) : r.GetRepeatedInt32(message, &field, index);
    case FieldDescriptor::CPPTYPE_INT64:
      return one ? r.GetInt64(message, &field) : r.GetRepeatedInt64(message, &field, index);
    case FieldDescriptor::CPPTYPE_UINT32:
      return one ? r.GetUInt32(message, &field) : r.GetRepeatedUInt32(message, &field, index);
    case FieldDescriptor::CPPTYPE_UINT64:
      return one ? r.GetUInt64(message, &field) : r.GetRepeatedUInt64(message, &field, index);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return NumberToJson(one ? r.GetFloat(message, &field) : r.GetRepeatedFloat(message, &field, index));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return NumberToJson(one ? r.GetDouble(message, &field) : r.GetRepeatedDouble(message, &field, index));
    case FieldDescriptor::CPPTYPE_STRING:
      return one ? r.GetString(message, &field) : r.GetRepeatedString(message, &field, index);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumToJson(field, one ? r.GetEnumValue(message, &field) : r.GetRepeatedEnumValue(message, &field, index));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (one && !r.HasField(message, &field)) return nullptr;
      return ToJson(one ? r.GetMessage(message, &field) : r.GetRepeatedMessage(message, &field, index));
  }
  return nullptr;
}

ordered_json MapToJson(const Message& message, const FieldDescriptor& field) {
  const Reflection& r = *message.GetReflection();
  std::map<std::string, ordered_json> sorted;
  for (int i = 0; i < r.FieldSize(message, &field); ++i) {
    const Message& entry = r.GetRepeatedMessage(message, &field, i);
    sorted[entry.GetReflection()->GetString(entry, field.message_type()->map_key())] =
        ValueToJson(entry, *field.message_type()->map_value(), -1);
  }
  ordered_json map = ordered_json::object();
  for (auto& [key, value] : sorted) map[key] = std::move(value);
  return map;
}

}  // namespace

ordered_json ToJson(const Message& message) {
  if (const auto* spec = dynamic_cast<const v1::JobSpec*>(&message)) return ordered_json(jobfile::ToDocument(*spec));
  if (const auto* time = dynamic_cast<const google::protobuf::Timestamp*>(&message)) return TimeText(*time);
  if (const auto* duration = dynamic_cast<const google::protobuf::Duration*>(&message)) {
    return static_cast<double>(duration->seconds()) + duration->nanos() * 1e-9;
  }
  ordered_json object = ordered_json::object();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message.GetDescriptor()->field(i);
    if (field.is_map()) {
      object[field.name()] = MapToJson(message, field);
    } else if (field.is_repeated()) {
      ordered_json list = ordered_json::array();
      for (int k = 0; k < message.GetReflection()->FieldSize(message, &field); ++k)
        list.push_back(ValueToJson(message, field, k));
      object[field.name()] = std::move(list);
    } else if (field.has_optional_keyword() && !message.GetReflection()->HasField(message, &field)) {
      object[field.name()] = nullptr;
    } else {
      object[field.name()] = ValueToJson(message, field, -1);
    }
  }
  return object;
}

std::chrono::system_clock::time_point TimeOf(const google::protobuf::Timestamp& timestamp) {
  return std::chrono::system_clock::time_point(std::chrono::duration_cast<std::chrono::system_clock::duration>(
      std::chrono::seconds(timestamp.seconds()) + std::chrono::nanoseconds(timestamp.nanos())));
}

std::string TimeText(const google::protobuf::Timestamp& timestamp) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(static_cast<std::time_t>(timestamp.seconds())),
                     timestamp.nanos() / 1'000'000);
}

}  // namespace longspan::client
