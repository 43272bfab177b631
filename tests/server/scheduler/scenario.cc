#include "tests/server/scheduler/scenario.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>

namespace longspan::scheduler {
namespace {

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::vector<int64_t> Numbers(const std::string& text) {
  std::vector<int64_t> numbers;
  for (const std::string& part : Split(text, ',')) numbers.push_back(std::stoll(part));
  return numbers;
}

absl::Duration DurationOf(const std::string& text) {
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration)) throw std::invalid_argument("no duration: " + text);
  return duration;
}

std::vector<Placement> Placements(const std::string& text) {
  std::vector<Placement> placements;
  for (const std::string& part : Split(text, '+')) {
    const size_t digit = part.find_first_of("0123456789");
    placements.push_back({WorkerId(part.substr(0, digit)), std::stoll(part.substr(digit))});
  }
  return placements;
}

std::string Text(const std::vector<Placement>& placements) {
  std::string text;
  for (const Placement& p : placements) {
    text += fmt::format("{}{}{}", text.empty() ? "" : "+", p.worker_id, p.slot < 0 ? "" : std::to_string(p.slot));
  }
  return text;
}

int64_t GiB(const std::string& text) { return std::stoll(text) << 30; }

Requirements RequirementsOf(const std::map<std::string, std::string>& words) {
  Requirements requirements;
  for (const char* label : {"gpu", "zone"}) {
    if (words.contains(label)) requirements.labels[label] = words.at(label);
  }
  if (words.contains("memory")) requirements.memory_bytes_min = GiB(words.at("memory"));
  return requirements;
}

const char* Text(Stop::Why why) {
  switch (why) {
    case Stop::Why::kPreempted:
      return "preempted";
    case Stop::Why::kShrinks:
      return "shrinks";
    case Stop::Why::kGrows:
      return "grows";
  }
  return "unknown";
}

}  // namespace

std::string Scenario::Run(const std::string& line) {
  std::istringstream stream(line);
  std::string command, name;
  stream >> command >> name;
  Words words;
  for (std::string word; stream >> word;) {
    const size_t equals = word.find('=');
    std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
    std::replace(value.begin(), value.end(), '_', ' ');
    words[word.substr(0, equals)] = value;
  }
  if (command == "worker") {
    AddWorker(name, words);
  } else if (command == "job") {
    AddJob(name, words);
  } else if (command == "gang") {
    AddGang(name, words);
  } else if (command == "queue") {
    AddQueue(name, words);
  } else if (command == "clear") {
    snapshot_.jobs.clear();
    snapshot_.gangs.clear();
    snapshot_.queues.clear();
    for (WorkerSlots& worker : snapshot_.workers) {
      for (WorkerSlot& slot : worker.slots) slot.taken = false;
    }
  } else if (command == "plan") {
    return ToText(Schedule(snapshot_, kScenarioNow), kScenarioNow);
  } else {
    return "unknown command " + command + "\n";
  }
  return "";
}

void Scenario::AddWorker(const std::string& name, const Words& words) {
  SlotKind kind;
  kind.device = words.contains("device") ? words.at("device") : "cpu";
  if (words.contains("memory")) kind.memory_bytes = GiB(words.at("memory"));
  snapshot_.kinds.push_back(kind);
  WorkerSlots worker;
  worker.id = WorkerId(name);
  worker.up = !words.contains("down");
  worker.expected = words.contains("expected");
  worker.draining = words.contains("draining");
  for (const char* label : {"rack", "zone"}) {
    if (words.contains(label)) worker.labels[label] = words.at(label);
  }
  const std::vector<int64_t> taken = words.contains("taken") ? Numbers(words.at("taken")) : std::vector<int64_t>();
  for (int64_t i = 0; i < std::stoll(words.at("slots")); ++i) {
    const bool is_taken = std::find(taken.begin(), taken.end(), i) != taken.end();
    worker.slots.push_back({i, static_cast<int32_t>(snapshot_.kinds.size()) - 1, is_taken});
  }
  snapshot_.workers.push_back(std::move(worker));
}

void Scenario::AddJob(const std::string& name, const Words& words) {
  WaitingJob job;
  job.id = JobId(name);
  if (words.at("sizes") != "none") job.sizes = Numbers(words.at("sizes"));
  if (words.contains("priority")) job.priority = std::stoll(words.at("priority"));
  if (words.contains("queue")) job.queue = words.at("queue");
  // In the order of the file unless it says otherwise.
  const int64_t order = words.contains("submit") ? std::stoll(words.at("submit")) : std::ssize(snapshot_.jobs);
  const absl::Duration waited = words.contains("waited") ? DurationOf(words.at("waited")) : absl::Hours(1);
  job.submit_time = kScenarioNow - waited + absl::Seconds(order);
  if (words.contains("estimate")) job.estimate = DurationOf(words.at("estimate"));
  job.requirements = RequirementsOf(words);
  if (words.contains("avoid")) job.avoid.push_back(WorkerId(words.at("avoid")));
  if (words.contains("not_before")) job.not_before = kScenarioNow + DurationOf(words.at("not_before"));
  job.old_ranks_remain = words.contains("old_ranks");
  if (words.contains("reserved")) {
    job.reserved = Placements(words.at("reserved"));
    job.reserved_until = kScenarioNow + DurationOf(words.at("until"));
  }
  snapshot_.jobs.push_back(std::move(job));
}

void Scenario::AddGang(const std::string& name, const Words& words) {
  RunningGang gang;
  gang.id = JobId(name);
  gang.ranks = Placements(words.at("on"));
  if (words.contains("priority")) gang.priority = std::stoll(words.at("priority"));
  if (words.contains("queue")) gang.queue = words.at("queue");
  gang.start_time = kScenarioNow - (words.contains("started") ? DurationOf(words.at("started")) : absl::Hours(1));
  gang.expected_end = kScenarioNow + (words.contains("ends") ? DurationOf(words.at("ends")) : absl::Hours(1));
  if (words.contains("protected")) gang.protected_until = kScenarioNow + DurationOf(words.at("protected"));
  gang.ending = words.contains("ending");
  gang.stopping = gang.ending || words.contains("stopping");
  gang.sizes = words.contains("sizes") ? Numbers(words.at("sizes"))
                                       : std::vector<int64_t>{static_cast<int64_t>(gang.ranks.size())};
  gang.requirements = RequirementsOf(words);
  for (const Placement& rank : gang.ranks) {
    for (WorkerSlots& worker : snapshot_.workers) {
      if (worker.id == rank.worker_id) worker.slots.at(rank.slot).taken = true;
    }
  }
  snapshot_.gangs.push_back(std::move(gang));
}

void Scenario::AddQueue(const std::string& name, const Words& words) {
  Queue& queue = snapshot_.queues[name];
  if (words.contains("weight")) queue.weight = std::stod(words.at("weight"));
  if (words.contains("used")) queue.used_slot_seconds = std::stod(words.at("used"));
  if (words.contains("slots_max")) queue.slots_max = std::stoll(words.at("slots_max"));
}

std::string ToText(const Plan& plan, absl::Time now) {
  std::string text;
  for (const Start& start : plan.starts) text += fmt::format("{} starts on {}\n", start.job_id, Text(start.ranks));
  for (const Stop& stop : plan.stops) {
    text += fmt::format("{} stops for {} ({}{})\n", stop.job_id, stop.beneficiary, Text(stop.why),
                        stop.keep.empty() ? "" : ", keeps " + Text(stop.keep));
  }
  for (const Reserve& reserve : plan.reserves) {
    text += fmt::format("kept for {}: {}\n", reserve.job_id, Text(reserve.slots));
  }
  for (const Wait& wait : plan.waits) {
    text += fmt::format("{}. {} {}: {}", wait.position, wait.job_id, wait.reason, wait.message);
    if (wait.expected_start < absl::InfiniteFuture()) {
      text += fmt::format(" [{}]", absl::FormatDuration(wait.expected_start - now));
    }
    text += "\n";
  }
  return text;
}

}  // namespace longspan::scheduler
