#include "server/simulator/trace.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

namespace longspan::simulator {
namespace {

using nlohmann::json;

constexpr int kBadLinesTold = 20;
constexpr double kSecondsMax = 1e10;  // 300 years: more is a wrong unit
constexpr int64_t kSlotsMax = 1'000'000;
constexpr double kBytesPerGiB = 1024.0 * 1024 * 1024;
constexpr std::string_view kFields[] = {"id",    "submit", "slots",    "sizes",  "run_time",   "planned_run_time",
                                        "limit", "queue",  "priority", "labels", "memory_gib", "user"};

// What is wrong with one line; thrown by the readers of fields, caught where lines are counted.
struct BadField {
  std::string message;
};

double Seconds(const json& row, const char* field, double at_least) {
  const json& value = row.at(field);
  if (!value.is_number() || !(value.get<double>() >= at_least) || value.get<double>() > kSecondsMax) {
    throw BadField{
        fmt::format("\"{}\" is {}; seconds from {} to {:.0e} are right", field, value.dump(), at_least, kSecondsMax)};
  }
  return value.get<double>();
}

std::string Text(const json& row, const char* field) {
  const json& value = row.at(field);
  if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
    throw BadField{fmt::format("\"{}\" is {}; a text that is not empty is right", field, value.dump())};
  }
  return value.get<std::string>();
}

int64_t Integer(const json& value, const char* field, int64_t least, int64_t most) {
  if (!value.is_number_integer() || value.get<int64_t>() < least || value.get<int64_t>() > most) {
    throw BadField{
        fmt::format("\"{}\" has {}; whole numbers from {} to {} are right", field, value.dump(), least, most)};
  }
  return value.get<int64_t>();
}

std::vector<int64_t> Sizes(const json& row) {
  if (row.contains("slots") == row.contains("sizes")) {
    throw BadField{R"(one of "slots" (a number) and "sizes" (a list, for an elastic job) is needed, and only one)"};
  }
  if (row.contains("slots")) return {Integer(row.at("slots"), "slots", 1, kSlotsMax)};
  const json& list = row.at("sizes");
  if (!list.is_array() || list.empty()) {
    throw BadField{fmt::format("\"sizes\" is {}; a list of numbers of slots, smallest first, is right", list.dump())};
  }
  std::vector<int64_t> sizes;
  for (const json& size : list) {
    sizes.push_back(Integer(size, "sizes", 1, kSlotsMax));
    if (sizes.size() > 1 && sizes[sizes.size() - 2] >= sizes.back()) {
      throw BadField{fmt::format("\"sizes\" is {}; each must be larger than the one before", list.dump())};
    }
  }
  return sizes;
}

std::map<std::string, std::string> Labels(const json& row) {
  const json& labels = row.at("labels");
  const bool texts =
      labels.is_object() && std::all_of(labels.begin(), labels.end(), [](const json& v) { return v.is_string(); });
  if (!texts) {
    throw BadField{fmt::format(R"("labels" is {}; texts by name are right, as in {{"gpu": "H200"}})", labels.dump())};
  }
  return labels.get<std::map<std::string, std::string>>();
}

void CheckFields(const json& row) {
  if (!row.is_object()) throw BadField{"a JSON object is right, as in README.md"};
  for (const auto& [name, value] : row.items()) {
    if (std::find(std::begin(kFields), std::end(kFields), name) == std::end(kFields)) {
      throw BadField{fmt::format("\"{}\" is no field; the fields are {}", name, fmt::join(kFields, ", "))};
    }
  }
  for (const char* needed : {"id", "submit", "run_time"}) {
    if (!row.contains(needed)) throw BadField{fmt::format("\"{}\" is missing", needed)};
  }
}

TraceJob JobOf(const json& row) {
  CheckFields(row);
  TraceJob job;
  job.id = JobId(Text(row, "id"));
  job.submit = absl::Seconds(Seconds(row, "submit", 0));
  job.sizes = Sizes(row);
  job.run_time = absl::Seconds(Seconds(row, "run_time", 0.001));
  job.planned_run_time = job.run_time;
  if (row.contains("planned_run_time")) {
    job.planned_run_time = absl::Seconds(Seconds(row, "planned_run_time", row.at("run_time").get<double>()));
  }
  if (row.contains("limit")) job.limit = absl::Seconds(Seconds(row, "limit", 0.001));
  if (row.contains("queue")) job.queue = Text(row, "queue");
  if (row.contains("priority")) job.priority = Integer(row.at("priority"), "priority", 0, 100);
  if (row.contains("user")) job.user = Text(row, "user");
  if (row.contains("labels")) job.requirements.labels = Labels(row);
  if (row.contains("memory_gib")) {
    const json& memory = row.at("memory_gib");
    if (!memory.is_number() || !(memory.get<double>() >= 0) || memory.get<double>() > 1e6) {
      throw BadField{fmt::format("\"memory_gib\" is {}; GiB per slot from 0 to 1000000 are right", memory.dump())};
    }
    job.requirements.memory_bytes_min = static_cast<int64_t>(memory.get<double>() * kBytesPerGiB);
  }
  return job;
}

}  // namespace

absl::StatusOr<std::vector<TraceJob>> ReadTrace(std::istream& in, const std::string& name) {
  std::vector<TraceJob> jobs;
  std::set<JobId> ids;
  std::string wrong;
  int wrong_count = 0;
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos || line[0] == '#') continue;
    std::string message;
    try {
      jobs.push_back(JobOf(json::parse(line)));
      if (!ids.insert(jobs.back().id).second) {
        message = fmt::format("\"id\" {} was there before; every job has its own", jobs.back().id);
      }
    } catch (const BadField& bad) {
      message = bad.message;
    } catch (const json::parse_error& error) {
      message = fmt::format("no JSON at byte {}; one object a line is right", error.byte);
    }
    if (message.empty()) continue;
    if (++wrong_count <= kBadLinesTold) wrong += fmt::format("\n{} line {}: {}", name, number, message);
  }
  if (in.bad()) return absl::UnavailableError(fmt::format("cannot read {} after line {}", name, number));
  if (wrong_count > 0) {
    return absl::InvalidArgumentError(fmt::format("{} of {} lines are wrong{}{}", wrong_count, number, wrong,
                                                  wrong_count > kBadLinesTold ? "\n..." : ""));
  }
  if (jobs.empty())
    return absl::InvalidArgumentError(fmt::format("{} has no job; one JSON object a line is right", name));
  std::stable_sort(jobs.begin(), jobs.end(), [](const TraceJob& a, const TraceJob& b) { return a.submit < b.submit; });
  return jobs;
}

absl::StatusOr<std::vector<TraceJob>> ReadTraceFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(fmt::format("cannot open {}", path));
  return ReadTrace(file, path);
}

std::string TraceLine(const TraceJob& job) {
  nlohmann::ordered_json row = {{"id", job.id.value()}, {"submit", absl::ToDoubleSeconds(job.submit)}};
  if (job.sizes.size() == 1) {
    row["slots"] = job.sizes.front();
  } else {
    row["sizes"] = job.sizes;
  }
  row["run_time"] = absl::ToDoubleSeconds(job.run_time);
  if (job.planned_run_time != job.run_time) row["planned_run_time"] = absl::ToDoubleSeconds(job.planned_run_time);
  if (job.limit < absl::InfiniteDuration()) row["limit"] = absl::ToDoubleSeconds(job.limit);
  row["queue"] = job.queue;
  if (job.priority != 50) row["priority"] = job.priority;
  if (!job.user.empty()) row["user"] = job.user;
  if (!job.requirements.labels.empty()) row["labels"] = job.requirements.labels;
  if (job.requirements.memory_bytes_min > 0) {
    row["memory_gib"] = static_cast<double>(job.requirements.memory_bytes_min) / kBytesPerGiB;
  }
  return row.dump();
}

}  // namespace longspan::simulator
