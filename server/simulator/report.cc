#include "server/simulator/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace longspan::simulator {
namespace {

constexpr double kSlowdownRunMin = 600;  // bounded slowdown: Feitelson 2001

// Nearest rank. `sorted` ascending.
double Percentile(const std::vector<double>& sorted, double share) {
  if (sorted.empty()) return 0;
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

double Mean(const std::vector<double>& values) {
  return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

class Waits {
 public:
  void Add(const JobOutcome& outcome, absl::Time submit) {
    ++jobs_;
    if (outcome.start == absl::InfiniteFuture()) {
      ++never_;
    } else {
      seconds_.push_back(absl::ToDoubleSeconds(outcome.start - submit));
    }
  }
  WaitNumbers Numbers() {
    std::sort(seconds_.begin(), seconds_.end());
    return {jobs_,
            never_,
            Mean(seconds_),
            Percentile(seconds_, 0.5),
            Percentile(seconds_, 0.9),
            Percentile(seconds_, 0.99),
            seconds_.empty() ? 0 : seconds_.back()};
  }

 private:
  int64_t jobs_ = 0;
  int64_t never_ = 0;
  std::vector<double> seconds_;
};

std::vector<SizeClass> Classes() {
  return {{"1", 1, 1, {}},
          {"2-4", 2, 4, {}},
          {"5-8", 5, 8, {}},
          {"9-31", 9, 31, {}},
          {"32+", 32, std::numeric_limits<int64_t>::max(), {}}};
}

Report::PassNumbers PassNumbersOf(const std::vector<PassTime>& passes) {
  Report::PassNumbers numbers;
  std::vector<double> cpu, wall;
  for (const PassTime& pass : passes) {
    cpu.push_back(pass.cpu_seconds);
    wall.push_back(pass.wall_seconds);
    numbers.waiting_max = std::max(numbers.waiting_max, pass.waiting);
  }
  std::sort(cpu.begin(), cpu.end());
  std::sort(wall.begin(), wall.end());
  numbers.count = static_cast<int64_t>(passes.size());
  numbers.cpu_p50 = Percentile(cpu, 0.5);
  numbers.cpu_p99 = Percentile(cpu, 0.99);
  numbers.cpu_longest = Percentile(cpu, 1);
  numbers.wall_p50 = Percentile(wall, 0.5);
  numbers.wall_p99 = Percentile(wall, 0.99);
  return numbers;
}

std::string DurationText(double seconds) {
  if (seconds < 120) return fmt::format("{:.0f} s", seconds);
  if (seconds < 2 * 3600) return fmt::format("{:.1f} min", seconds / 60);
  if (seconds < 48 * 3600) return fmt::format("{:.1f} h", seconds / 3600);
  return fmt::format("{:.1f} days", seconds / 86400);
}

std::string WaitRow(const std::string& name, const WaitNumbers& wait) {
  return fmt::format("{:<16}{:>8}{:>12}{:>12}{:>12}{:>12}{:>12}{}\n", name, wait.jobs, DurationText(wait.mean),
                     DurationText(wait.median), DurationText(wait.p90), DurationText(wait.p99),
                     DurationText(wait.longest),
                     wait.never_started > 0 ? fmt::format("  {} never started", wait.never_started) : "");
}

nlohmann::ordered_json WaitJson(const WaitNumbers& wait) {
  return {{"jobs", wait.jobs},      {"never_started", wait.never_started},
          {"mean", wait.mean},      {"median", wait.median},
          {"p90", wait.p90},        {"p99", wait.p99},
          {"longest", wait.longest}};
}

nlohmann::ordered_json WorkJson(const scheduler::Work& work) {
  return {{"placements", work.placements},
          {"workers", work.workers},
          {"slots", work.slots},
          {"cluster_copies", work.cluster_copies}};
}

}  // namespace

Report MakeReport(const std::vector<TraceJob>& trace, const SimulationResult& result) {
  Report report;
  Waits all;
  std::vector<SizeClass> classes = Classes();
  std::vector<Waits> by_class(classes.size());
  std::map<std::string, Waits> by_queue;
  std::vector<double> slowdowns;
  const absl::Time begin = result.begin - trace.front().submit;
  for (size_t i = 0; i < trace.size(); ++i) {
    const JobOutcome& outcome = result.jobs[i];
    const absl::Time submit = begin + trace[i].submit;
    all.Add(outcome, submit);
    by_queue[trace[i].queue].Add(outcome, submit);
    for (size_t c = 0; c < classes.size(); ++c) {
      const int64_t size = trace[i].LargestSize();
      if (size >= classes[c].least && size <= classes[c].most) by_class[c].Add(outcome, submit);
    }
    report.preemptions += outcome.preemptions;
    report.resizes += outcome.resizes;
    report.ended_by_limit += outcome.ended_by_limit;
    if (outcome.end == absl::InfiniteFuture()) continue;
    const double run = std::max(kSlowdownRunMin, absl::ToDoubleSeconds(trace[i].run_time));
    slowdowns.push_back(std::max(1.0, absl::ToDoubleSeconds(outcome.end - submit) / run));
  }
  report.wait = all.Numbers();
  for (size_t c = 0; c < classes.size(); ++c) {
    classes[c].wait = by_class[c].Numbers();
    if (classes[c].wait.jobs > 0) report.classes.push_back(classes[c]);
  }
  for (auto& [name, waits] : by_queue) report.queues[name] = waits.Numbers();
  report.slowdown_mean = Mean(slowdowns);
  const double slots = static_cast<double>(result.slots);
  const double submitting = absl::ToDoubleSeconds(result.last_submit - result.begin);
  report.makespan_seconds = absl::ToDoubleSeconds(result.end - result.begin);
  if (submitting > 0) report.utilisation = result.held_slot_seconds / slots / submitting;
  if (report.makespan_seconds > 0) report.goodput = result.useful_slot_seconds / slots / report.makespan_seconds;
  report.lost_slot_seconds = result.lost_slot_seconds;
  report.fairness = result.fairness;
  report.contended_seconds = result.contended_seconds;
  report.passes = PassNumbersOf(result.passes);
  report.work_max = result.work_max;
  report.work_total = result.work_total;
  return report;
}

std::string ReportTable(const Report& report) {
  std::string text = fmt::format("{:<16}{:>8}{:>12}{:>12}{:>12}{:>12}{:>12}\n", "wait", "jobs", "mean", "median", "p90",
                                 "p99", "longest");
  text += WaitRow("all", report.wait);
  for (const SizeClass& each : report.classes) {
    text += WaitRow(each.name + (each.most == 1 ? " slot" : " slots"), each.wait);
  }
  for (const auto& [queue, wait] : report.queues) text += WaitRow("queue " + queue, wait);
  text += fmt::format("\nutilisation        {:.1f} % of all slots are held from the first submit to the last\n",
                      100 * report.utilisation);
  text += fmt::format(
      "goodput            {:.1f} % of all slots do work that is kept, from the first submit to the last end\n",
      100 * report.goodput);
  text += fmt::format("slowdown           {:.2f} mean, bounded\n", report.slowdown_mean);
  text += fmt::format("fairness           {:.3f} (Jain's index of slots by weight, while several queues wait: {})\n",
                      report.fairness, DurationText(report.contended_seconds));
  text += fmt::format("preemptions        {}; {} resizes; {:.0f} slot-hours lost\n", report.preemptions, report.resizes,
                      report.lost_slot_seconds / 3600);
  text += fmt::format("ended by limit     {}\n", report.ended_by_limit);
  text += fmt::format("makespan           {}\n", DurationText(report.makespan_seconds));
  text += fmt::format(
      "passes             {}, up to {} jobs wait; processor time p50 {:.2f} ms, p99 {:.2f} ms, longest {:.2f} ms; "
      "wall p50 {:.2f} ms, p99 {:.2f} ms\n",
      report.passes.count, report.passes.waiting_max, 1e3 * report.passes.cpu_p50, 1e3 * report.passes.cpu_p99,
      1e3 * report.passes.cpu_longest, 1e3 * report.passes.wall_p50, 1e3 * report.passes.wall_p99);
  return text;
}

nlohmann::ordered_json ReportJson(const Report& report) {
  nlohmann::ordered_json root;
  root["wait_seconds"] = WaitJson(report.wait);
  for (const SizeClass& each : report.classes) root["wait_seconds_by_size"][each.name] = WaitJson(each.wait);
  for (const auto& [queue, wait] : report.queues) root["wait_seconds_by_queue"][queue] = WaitJson(wait);
  root["utilisation"] = report.utilisation;
  root["goodput"] = report.goodput;
  root["slowdown_mean"] = report.slowdown_mean;
  root["fairness"] = report.fairness;
  root["contended_seconds"] = report.contended_seconds;
  root["preemptions"] = report.preemptions;
  root["resizes"] = report.resizes;
  root["lost_slot_seconds"] = report.lost_slot_seconds;
  root["ended_by_limit"] = report.ended_by_limit;
  root["makespan_seconds"] = report.makespan_seconds;
  root["passes"] = report.passes.count;
  root["waiting_max"] = report.passes.waiting_max;
  root["work_max"] = WorkJson(report.work_max);
  root["work_total"] = WorkJson(report.work_total);
  root["timing"] = {{"cpu_seconds_p50", report.passes.cpu_p50},
                    {"cpu_seconds_p99", report.passes.cpu_p99},
                    {"cpu_seconds_max", report.passes.cpu_longest},
                    {"wall_seconds_p50", report.passes.wall_p50},
                    {"wall_seconds_p99", report.passes.wall_p99}};
  return root;
}

}  // namespace longspan::simulator
