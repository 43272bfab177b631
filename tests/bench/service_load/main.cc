// longspan-service-load: workers and users of a server under load, told by lines on standard input.
//
//   {"do": "workers", "count": 1000, "slots": 8}          each line is answered by one line when it is done
//   {"do": "submit", "count": 3000, "clients": 64, "spec": {a job file}, "slots": [1, 2, 4, 8], "prefix": "a"}
//   {"do": "wait_running", "ranks": 8000, "seconds": 60}
//   {"do": "steps", "every_seconds": 1}                   what every running rank does from now on; with
//    "eager_jobs": ["job-..."], "eager_steps": 100         some make more steps at a time
//   {"do": "observe", "seconds": 15}                      what the workers and watchers saw in that time
//   {"do": "watch", "jobs": ["job-..."], "readers": 180, "silent": 20}
//   {"do": "let_silent_read"}
//
// A mistake is answered with {"error": "..."} and ends the program with 1.
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <thread>

#include "proto/jobfile/job_file.h"
#include "proto/support/job_spec_messages.h"
#include "tests/bench/service_load/clients.h"
#include "tests/bench/service_load/fleet.h"

namespace longspan::load {
namespace {

using nlohmann::json;

// One for each number of slots.
std::vector<v1::JobSpec> SpecsOf(const json& command) {
  std::vector<v1::JobSpec> specs;
  for (const int64_t slots : command.value("slots", std::vector<int64_t>{1})) {
    json document = command.at("spec");
    document["resources"]["slots"] = slots;
    const jobfile::Parsed parsed = jobfile::ParseText(document.dump());
    if (!parsed.mistakes.empty()) {
      throw std::runtime_error("spec." + parsed.mistakes[0].path + " " + parsed.mistakes[0].message);
    }
    specs.push_back(jobfile::ToMessage(*parsed.spec));
  }
  return specs;
}

class Session {
 public:
  explicit Session(const std::string& address) : address_(address), fleet_(address), watchers_(address) {}

  json Do(const json& command) {
    const std::string what = command.at("do");
    if (what == "workers") return StartWorkers(command);
    if (what == "submit") return SubmitJobs(command);
    if (what == "wait_running") return WaitRunning(command);
    if (what == "steps") return SetSteps(command);
    if (what == "observe") return Observe(command);
    if (what == "watch") return Watch(command);
    if (what == "let_silent_read") {
      watchers_.LetSilentRead();
      return json::object();
    }
    throw std::runtime_error("unknown command " + what);
  }

 private:
  json StartWorkers(const json& command) {
    const absl::Time start = absl::Now();
    fleet_.Start(command.at("count"), command.at("slots"));
    if (!fleet_.WaitRegistered(absl::Seconds(120)))
      throw std::runtime_error("not all workers were registered in 120 s");
    return {{"seconds", absl::ToDoubleSeconds(absl::Now() - start)}};
  }

  json SubmitJobs(const json& command) {
    SubmitLoad load;
    load.specs = SpecsOf(command);
    load.count = command.at("count");
    load.clients = command.value("clients", 1);
    load.per_second = command.value("per_second", 0.0);
    load.request_prefix = command.at("prefix");
    return Submit(address_, load);
  }

  json WaitRunning(const json& command) {
    const absl::Time start = absl::Now();
    if (!fleet_.WaitRunning(command.at("ranks"), absl::Seconds(command.at("seconds").get<double>()))) {
      throw std::runtime_error("only " + std::to_string(fleet_.running_ranks()) + " ranks run");
    }
    return {{"seconds", absl::ToDoubleSeconds(absl::Now() - start)}};
  }

  json SetSteps(const json& command) {
    StepsAtOnce steps;
    for (const json& job_id : command.value("eager_jobs", json::array())) steps.eager_jobs.insert(job_id);
    steps.eager_steps = command.value("eager_steps", 1);
    fleet_.SetStepsAtOnce(std::move(steps));
    fleet_.SetStepTime(absl::Seconds(command.at("every_seconds").get<double>()));
    return json::object();
  }

  json Observe(const json& command) {
    fleet_.ResetStatistics();
    watchers_.ResetStatistics();
    const absl::Time start = absl::Now();
    std::this_thread::sleep_for(std::chrono::duration<double>(command.at("seconds").get<double>()));
    return {{"seconds", absl::ToDoubleSeconds(absl::Now() - start)},
            {"workers", fleet_.Statistics()},
            {"watchers", watchers_.Statistics()}};
  }

  json Watch(const json& command) {
    const std::vector<std::string> jobs = command.at("jobs");
    const int64_t readers = command.at("readers");
    const int64_t silent = command.at("silent");
    for (int64_t i = 0; i < readers + silent; ++i) watchers_.Open(jobs[i % jobs.size()], i >= silent);
    return json::object();
  }

  const std::string address_;
  Fleet fleet_;
  Watchers watchers_;
};

int Main(int argc, char** argv) {
  if (argc != 2 || std::string(argv[1]).starts_with('-')) {
    const bool asked = argc == 2 && std::string(argv[1]) == "--help";
    (asked ? std::cout : std::cerr)
        << "usage: longspan-service-load HOST:PORT < commands (tests/bench/service_load/main.cc lists them)\n";
    return asked ? 0 : 2;
  }
  Session session(argv[1]);
  std::string line;
  while (std::getline(std::cin, line)) {
    try {
      std::cout << session.Do(json::parse(line)).dump() << std::endl;
    } catch (const std::exception& error) {
      std::cout << json{{"error", error.what()}}.dump() << std::endl;
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace longspan::load

int main(int argc, char** argv) { return longspan::load::Main(argc, argv); }
