#include "server/simulator/cluster.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace longspan::simulator {
namespace {

using nlohmann::json;

constexpr double kBytesPerGiB = 1024.0 * 1024 * 1024;

struct BadCluster {
  std::string message;
};

void CheckKeys(const json& object, const std::string& where, const std::vector<std::string>& known) {
  if (!object.is_object()) throw BadCluster{fmt::format("{} is no object", where)};
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw BadCluster{fmt::format("{} has \"{}\"; known are {}", where, key, fmt::join(known, ", "))};
    }
  }
}

double Number(const json& object, const std::string& where, const char* key, double otherwise, double least) {
  if (!object.contains(key)) return otherwise;
  const json& value = object.at(key);
  if (!value.is_number() || !(value.get<double>() >= least) || value.get<double>() > 1e10) {
    throw BadCluster{fmt::format("{}.{} is {}; a number from {} on is right", where, key, value.dump(), least)};
  }
  return value.get<double>();
}

int64_t Count(const json& object, const std::string& where, const char* key, int64_t otherwise, int64_t least) {
  const double value = Number(object, where, key, static_cast<double>(otherwise), static_cast<double>(least));
  if (value > 1e6 || value != static_cast<double>(static_cast<int64_t>(value))) {
    throw BadCluster{fmt::format("{}.{} is {}; whole numbers from {} to 1000000 are right", where, key, value, least)};
  }
  return static_cast<int64_t>(value);
}

const json& List(const json& object, const char* key) {
  static const json kNone = json::array();
  if (!object.contains(key)) return kNone;
  if (!object.at(key).is_array()) throw BadCluster{fmt::format("\"{}\" is no list", key)};
  return object.at(key);
}

std::string Text(const json& value, const std::string& where) {
  if (!value.is_string()) throw BadCluster{fmt::format("{} is {}; a text is right", where, value.dump())};
  return value.get<std::string>();
}

WorkerGroup GroupOf(const json& row, const std::string& where) {
  CheckKeys(row, where, {"count", "slots", "device", "memory_gib", "racks", "labels"});
  WorkerGroup group;
  group.count = Count(row, where, "count", 1, 1);
  group.slots = Count(row, where, "slots", 8, 1);
  group.racks = Count(row, where, "racks", 0, 0);
  group.memory_bytes = static_cast<int64_t>(Number(row, where, "memory_gib", 0, 0) * kBytesPerGiB);
  if (row.contains("device")) group.device = Text(row.at("device"), where + ".device");
  if (!row.contains("labels")) return group;
  if (!row.at("labels").is_object()) throw BadCluster{where + ".labels is no object"};
  for (const auto& [key, value] : row.at("labels").items()) group.labels[key] = Text(value, where + ".labels." + key);
  return group;
}

ClusterSpec ClusterOf(const json& root) {
  CheckKeys(root, "the cluster", {"workers", "queues"});
  ClusterSpec cluster;
  for (const json& row : List(root, "workers")) {
    cluster.groups.push_back(GroupOf(row, fmt::format("workers[{}]", cluster.groups.size())));
  }
  if (cluster.groups.empty()) throw BadCluster{R"("workers" is empty; [{"count": 4, "slots": 8}] would be right)"};
  size_t number = 0;
  for (const json& row : List(root, "queues")) {
    const std::string where = fmt::format("queues[{}]", number++);
    CheckKeys(row, where, {"name", "weight", "slots_max", "run_time_default"});
    if (!row.contains("name")) throw BadCluster{where + " has no name"};
    QueueRules rules;
    rules.weight = Number(row, where, "weight", 1, 1e-6);
    rules.slots_max = Count(row, where, "slots_max", 0, 0);
    rules.run_time_default = absl::Seconds(Number(row, where, "run_time_default", 86400, 1));
    if (!cluster.queues.emplace(Text(row.at("name"), where + ".name"), rules).second) {
      throw BadCluster{where + " has the name of another queue"};
    }
  }
  return cluster;
}

}  // namespace

int64_t ClusterSpec::SlotCount() const {
  int64_t slots = 0;
  for (const WorkerGroup& group : groups) slots += group.count * group.slots;
  return slots;
}

std::vector<scheduler::WorkerSlots> ClusterSpec::Workers(std::vector<scheduler::SlotKind>& kinds) const {
  std::vector<scheduler::WorkerSlots> workers;
  kinds.clear();
  for (const WorkerGroup& group : groups) {
    kinds.push_back({group.device, group.memory_bytes});
    for (int64_t i = 0; i < group.count; ++i) {
      scheduler::WorkerSlots& worker = workers.emplace_back();
      worker.id = WorkerId(fmt::format("w{:05}", workers.size() - 1));
      worker.up = true;
      worker.labels = group.labels;
      if (group.racks > 0) worker.labels["rack"] = fmt::format("{}-{}", kinds.size(), i % group.racks);
      for (int64_t slot = 0; slot < group.slots; ++slot) {
        worker.slots.push_back({slot, static_cast<int32_t>(kinds.size()) - 1, false});
      }
    }
  }
  return workers;
}

absl::StatusOr<ClusterSpec> ParseCluster(const std::string& text, const std::string& name) {
  try {
    return ClusterOf(json::parse(text));
  } catch (const BadCluster& bad) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", name, bad.message));
  } catch (const json::parse_error& error) {
    return absl::InvalidArgumentError(fmt::format("{}: no JSON at byte {}", name, error.byte));
  }
}

absl::StatusOr<ClusterSpec> ReadClusterFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(fmt::format("cannot open {}", path));
  std::stringstream text;
  text << file.rdbuf();
  return ParseCluster(text.str(), path);
}

std::string ClusterText(const ClusterSpec& cluster) {
  nlohmann::ordered_json root;
  for (const WorkerGroup& group : cluster.groups) {
    nlohmann::ordered_json row = {{"count", group.count}, {"slots", group.slots}, {"device", group.device}};
    if (group.memory_bytes > 0) row["memory_gib"] = static_cast<double>(group.memory_bytes) / kBytesPerGiB;
    if (group.racks > 0) row["racks"] = group.racks;
    if (!group.labels.empty()) row["labels"] = group.labels;
    root["workers"].push_back(row);
  }
  for (const auto& [name, rules] : cluster.queues) {
    root["queues"].push_back({{"name", name},
                              {"weight", rules.weight},
                              {"slots_max", rules.slots_max},
                              {"run_time_default", absl::ToDoubleSeconds(rules.run_time_default)}});
  }
  return root.dump(1) + "\n";
}

}  // namespace longspan::simulator
