// What a simulation says about a policy: as a table for people and as JSON for scripts.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "server/simulator/simulation.h"

namespace longspan::simulator {

struct WaitNumbers {
  int64_t jobs = 0;
  int64_t never_started = 0;                                   // not in the numbers below
  double mean = 0, median = 0, p90 = 0, p99 = 0, longest = 0;  // seconds from submit to first start
};

// Of a class of sizes (by the largest of an elastic job).
struct SizeClass {
  std::string name;  // "9-31"
  int64_t least = 1;
  int64_t most = 1;
  WaitNumbers wait;
};

struct Report {
  WaitNumbers wait;
  std::vector<SizeClass> classes;  // 1, 2-4, 5-8, 9-31, 32 and more; empty classes are left out
  std::map<std::string, WaitNumbers> queues;
  double slowdown_mean = 0;  // (wait + run) / run, runs shorter than 10 min counted as 10 min (bounded slowdown)
  double utilisation = 0;    // slots held, first to last submit
  double goodput = 0;        // slots' kept work by slots' time, first submit to last end
  double lost_slot_seconds = 0;
  int64_t preemptions = 0, resizes = 0, ended_by_limit = 0;
  double fairness = 1;
  double contended_seconds = 0;
  double makespan_seconds = 0;
  struct PassNumbers {
    int64_t count = 0;
    int64_t waiting_max = 0;
    double cpu_p50 = 0, cpu_p99 = 0, cpu_longest = 0, wall_p50 = 0, wall_p99 = 0;  // seconds
  } passes;
  scheduler::Work work_max, work_total;
};

Report MakeReport(const std::vector<TraceJob>& trace, const SimulationResult& result);

std::string ReportTable(const Report& report);

// "timing" holds all that differs between two runs.
nlohmann::ordered_json ReportJson(const Report& report);

}  // namespace longspan::simulator
