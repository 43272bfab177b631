// Protobuf messages as the JSON that scripts get: field names as they are, every field written out, enumerations
// without their prefix ("QUEUED"), whole numbers as numbers, non-finite ones as "nan", "inf", "-inf", times as RFC
// 3339, absent messages as null, a JobSpec as the job file it came from.
#pragma once

#include <google/protobuf/message.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>

#include "google/protobuf/timestamp.pb.h"

namespace longspan::client {

nlohmann::ordered_json ToJson(const google::protobuf::Message& message);

std::chrono::system_clock::time_point TimeOf(const google::protobuf::Timestamp& timestamp);
// "2026-01-02T03:04:05.678Z"
std::string TimeText(const google::protobuf::Timestamp& timestamp);

}  // namespace longspan::client
