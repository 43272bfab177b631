// The few columns that hold JSON. A text that is not what this program wrote gives DATA_LOSS.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/types.h"

namespace longspan::store {

std::string ToJson(const std::map<std::string, std::string>& labels);
std::string ToJson(const std::map<std::string, double>& values);  // non-finite: "nan", "inf", "-inf"
std::string ToJson(const std::vector<core::Slot>& slots);
std::string ToJson(const std::vector<std::string>& texts);
std::string ToJson(const std::vector<int64_t>& numbers);
std::string ToJson(const std::vector<scheduler::Placement>& slots);

absl::Status FromJson(const std::string& json, std::map<std::string, std::string>& labels);
absl::Status FromJson(const std::string& json, std::map<std::string, double>& values);
absl::Status FromJson(const std::string& json, std::vector<core::Slot>& slots);
absl::Status FromJson(const std::string& json, std::vector<std::string>& texts);
absl::Status FromJson(const std::string& json, std::vector<int64_t>& numbers);
absl::Status FromJson(const std::string& json, std::vector<scheduler::Placement>& slots);

}  // namespace longspan::store
