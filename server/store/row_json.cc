#include "server/store/row_json.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace longspan::store {
namespace {

using nlohmann::json;

// Invalid UTF-8 from a worker must not stop the server: it is replaced.
std::string Dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

template <typename Take>
absl::Status Parse(const std::string& text, Take take) {
  try {
    take(json::parse(text));
    return absl::OkStatus();
  } catch (const json::exception& error) {
    return absl::DataLossError(std::string("a JSON column of the database cannot be read: ") + error.what());
  }
}

json NumberToJson(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

double NumberFromJson(const json& value) {
  if (!value.is_string()) return value.get<double>();
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

std::string ToJson(const std::map<std::string, std::string>& labels) { return Dump(labels); }
std::string ToJson(const std::vector<std::string>& texts) { return Dump(texts); }
std::string ToJson(const std::vector<int64_t>& numbers) { return Dump(numbers); }
std::string ToJson(const std::vector<scheduler::Placement>& slots) {
  json array = json::array();
  for (const scheduler::Placement& slot : slots) {
    array.push_back({{"worker", slot.worker_id.value()}, {"slot", slot.slot}});
  }
  return Dump(array);
}
std::string ToJson(const std::map<std::string, double>& values) {
  json object = json::object();
  for (const auto& [name, value] : values) object[name] = NumberToJson(value);
  return Dump(object);
}
std::string ToJson(const std::vector<core::Slot>& slots) {
  json array = json::array();
  for (const core::Slot& slot : slots) {
    array.push_back({{"index", slot.index}, {"device", slot.device}, {"memory_bytes", slot.memory_bytes}});
  }
  return Dump(array);
}

absl::Status FromJson(const std::string& text, std::map<std::string, std::string>& labels) {
  return Parse(text, [&](const json& value) { labels = value.get<std::map<std::string, std::string>>(); });
}
absl::Status FromJson(const std::string& text, std::vector<std::string>& texts) {
  return Parse(text, [&](const json& value) { texts = value.get<std::vector<std::string>>(); });
}
absl::Status FromJson(const std::string& text, std::vector<int64_t>& numbers) {
  return Parse(text, [&](const json& value) { numbers = value.get<std::vector<int64_t>>(); });
}
absl::Status FromJson(const std::string& text, std::vector<scheduler::Placement>& slots) {
  return Parse(text, [&](const json& array) {
    for (const json& slot : array) {
      slots.push_back({WorkerId(slot.at("worker").get<std::string>()), slot.at("slot").get<int64_t>()});
    }
  });
}
absl::Status FromJson(const std::string& text, std::map<std::string, double>& values) {
  return Parse(text, [&](const json& object) {
    for (const auto& [name, value] : object.items()) values[name] = NumberFromJson(value);
  });
}
absl::Status FromJson(const std::string& text, std::vector<core::Slot>& slots) {
  return Parse(text, [&](const json& array) {
    for (const json& slot : array) {
      slots.push_back({slot.at("index").get<int64_t>(), slot.at("device").get<std::string>(),
                       slot.at("memory_bytes").get<int64_t>()});
    }
  });
}

}  // namespace longspan::store
