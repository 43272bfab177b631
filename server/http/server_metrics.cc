#include "server/http/server_metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

namespace longspan::http {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildHistogram;
using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Buckets = prometheus::Histogram::BucketBoundaries;
using Labels = std::map<std::string, std::string>;

const Buckets kFastSeconds = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10};
const Buckets kLongSeconds = {1,    5,        15,        60,        300,           900,
                              3600, 4 * 3600, 12 * 3600, 24 * 3600, 3 * 24 * 3600, 7 * 24 * 3600};

std::string LowerCase(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char letter) { return std::tolower(letter); });
  return text;
}

// One family of gauges or counters, built anew for each scrape.
class Series {
 public:
  Series(const std::string& name, const std::string& help, MetricType type) {
    family_.name = "longspan_" + name;
    family_.help = help;
    family_.type = type;
  }
  void Add(const Labels& labels, double value) {
    ClientMetric metric;
    for (const auto& [name, text] : labels) metric.label.push_back({name, text});
    metric.gauge.value = value;
    metric.counter.value = value;
    family_.metric.push_back(std::move(metric));
  }
  MetricFamily Take() { return std::move(family_); }

 private:
  MetricFamily family_;
};

void AddJobs(const ClusterSnapshot& snapshot, std::vector<MetricFamily>* out) {
  Series jobs("jobs", "Jobs by state.", MetricType::Gauge);
  for (const core::JobState state : core::kAllJobStates) {
    jobs.Add({{"state", core::Name(state)}}, static_cast<double>(snapshot.jobs_by_state[static_cast<size_t>(state)]));
  }
  out->push_back(jobs.Take());
}

// The queue of jobs that name none is there before there is one.
std::vector<core::QueueView> QueuesOf(const ClusterSnapshot& snapshot) {
  std::vector<core::QueueView> queues = snapshot.queues;
  const auto is_default = [](const core::QueueView& view) { return view.queue.name == "default"; };
  if (std::none_of(queues.begin(), queues.end(), is_default)) queues.emplace_back().queue.name = "default";
  return queues;
}

void AddQueues(const ClusterSnapshot& snapshot, std::vector<MetricFamily>* out) {
  std::map<std::string, double> oldest_seconds;
  for (const core::JobView& view : snapshot.jobs) {
    if (!core::IsWaiting(view.job.state)) continue;
    double& oldest = oldest_seconds[view.job.queue];
    oldest = std::max(oldest, absl::ToDoubleSeconds(snapshot.now - view.job.submit_time));
  }
  Series depth("queue_depth", "Jobs that wait, by queue.", MetricType::Gauge);
  Series oldest("queue_oldest_seconds", "Time since the submission of the oldest job that waits; 0 when none does.",
                MetricType::Gauge);
  Series slots("queue_slots", "Slots that the jobs of a queue hold.", MetricType::Gauge);
  Series slots_max("queue_slots_max", "Slots that they may hold at once; 0: no limit.", MetricType::Gauge);
  Series weight("queue_weight", "Share of a queue relative to others, as configured.", MetricType::Gauge);
  Series used("queue_used_share_ratio", "Part of what all queues have used, by decayed use.", MetricType::Gauge);
  Series expected("queue_expected_share_ratio", "Part by weight, among queues whose jobs hold slots or wait.",
                  MetricType::Gauge);
  for (const core::QueueView& view : QueuesOf(snapshot)) {
    const Labels queue = {{"queue", view.queue.name}};
    depth.Add(queue, static_cast<double>(view.waiting));
    oldest.Add(queue, oldest_seconds[view.queue.name]);
    slots.Add(queue, static_cast<double>(view.slots_held));
    slots_max.Add(queue, static_cast<double>(view.queue.slots_max));
    weight.Add(queue, view.queue.weight);
    used.Add(queue, view.used_share);
    expected.Add(queue, view.expected_share);
  }
  for (Series* series : {&depth, &oldest, &slots, &slots_max, &weight, &used, &expected})
    out->push_back(series->Take());
}

void AddWaits(const ClusterSnapshot& snapshot, std::vector<MetricFamily>* out) {
  Series waits("scheduler_unschedulable", "Jobs that the newest pass of the scheduler could not start, by reason.",
               MetricType::Gauge);
  for (const char* reason : scheduler::kWaitReasons) {
    const auto found = snapshot.waiting_by_reason.find(reason);
    waits.Add({{"reason", LowerCase(reason)}},
              found == snapshot.waiting_by_reason.end() ? 0 : static_cast<double>(found->second));
  }
  out->push_back(waits.Take());
}

// A label of the job file's canonical document; empty when it is not there.
std::string TextAt(const nlohmann::json& document, const char* pointer) {
  const nlohmann::json::json_pointer path(pointer);
  if (!document.contains(path)) return "";
  const nlohmann::json& value = document.at(path);
  return value.is_string() ? value.get<std::string>() : value.dump();
}

void AddJobInfo(const ClusterSnapshot& snapshot, std::vector<MetricFamily>* out) {
  Series info("job_info", "1 for each job that lives or ended some minutes ago, with what it is in the labels.",
              MetricType::Gauge);
  for (const core::JobView& view : snapshot.jobs) {
    const core::Job& job = view.job;
    const nlohmann::json spec = nlohmann::json::parse(job.spec_json, nullptr, false);
    if (spec.is_discarded()) continue;
    info.Add({{"job_id", job.id.value()},
              {"name", job.name},
              {"queue", job.queue},
              {"method", TextAt(spec, "/method/kind")},
              {"attention", TextAt(spec, "/attention/kind")},
              {"context", TextAt(spec, "/context_length")}},
             1);
  }
  out->push_back(info.Take());
}

void AddWorkers(const ClusterSnapshot& snapshot, std::vector<MetricFamily>* out) {
  Series up("worker_up", "1 while the worker's lease holds.", MetricType::Gauge);
  Series age("worker_lease_age_seconds", "Time since the worker's newest report.", MetricType::Gauge);
  Series slots("slots", "Slots by worker and state.", MetricType::Gauge);
  for (const core::WorkerView& view : snapshot.workers) {
    const std::string& worker = view.worker.id.value();
    up.Add({{"worker", worker}}, view.worker.up ? 1 : 0);
    age.Add({{"worker", worker}}, std::max(0.0, absl::ToDoubleSeconds(snapshot.now - view.worker.last_seen)));
    const auto used =
        std::count_if(view.slot_jobs.begin(), view.slot_jobs.end(), [](const JobId& job) { return !job.empty(); });
    slots.Add({{"worker", worker}, {"state", "used"}}, static_cast<double>(used));
    slots.Add({{"worker", worker}, {"state", "free"}},
              static_cast<double>(view.worker.slots.size()) - static_cast<double>(used));
  }
  out->push_back(up.Take());
  out->push_back(age.Take());
  out->push_back(slots.Take());
}

void AddCounters(const core::Counters& counters, std::vector<MetricFamily>* out) {
  Series attempts("job_attempts_total", "Attempts that ended without success, by the class of failure.",
                  MetricType::Counter);
  for (size_t i = 0; i < counters.attempts_failed.size(); ++i) {
    attempts.Add({{"reason", LowerCase(core::Name(static_cast<core::FailureClass>(i)))}},
                 static_cast<double>(counters.attempts_failed[i]));
  }
  Series started("job_attempts_started_total", "Attempts that were placed.", MetricType::Counter);
  started.Add({}, static_cast<double>(counters.attempts_started));
  Series fenced("fenced_messages_total", "Reports refused because they were old: of a past attempt, or overtaken.",
                MetricType::Counter);
  fenced.Add({{"method", "Synchronize"}}, static_cast<double>(counters.fenced_reports + counters.stale_reports));
  Series preemptions("preemptions_total", "Gangs that were asked to stop for a job of higher priority.",
                     MetricType::Counter);
  preemptions.Add({}, static_cast<double>(counters.preemptions));
  Series resizes("resizes_total", "Elastic gangs that were asked to stop for another size.", MetricType::Counter);
  resizes.Add({}, static_cast<double>(counters.resizes));
  out->push_back(preemptions.Take());
  out->push_back(resizes.Take());
  out->push_back(attempts.Take());
  out->push_back(started.Take());
  out->push_back(fenced.Take());
}

}  // namespace

ServerMetrics::ServerMetrics()
    : transitions_(BuildCounter()
                       .Name("longspan_job_transitions_total")
                       .Help("Changes of a job's state; from NONE: submitted.")
                       .Register(registry_)),
      run_duration_(BuildHistogram()
                        .Name("longspan_job_run_duration_seconds")
                        .Help("From a job's first run to its end.")
                        .Register(registry_)),
      handled_(BuildCounter()
                   .Name("longspan_grpc_server_handled_total")
                   .Help("Calls that ended, by method and code.")
                   .Register(registry_)),
      handling_seconds_(BuildHistogram()
                            .Name("longspan_grpc_server_handling_seconds")
                            .Help("Time from the begin of a call to its end; streams and held calls last long.")
                            .Register(registry_)),
      queue_wait_(BuildHistogram()
                      .Name("longspan_job_queue_wait_seconds")
                      .Help("From a job's submission to its first placement.")
                      .Register(registry_)
                      .Add({}, kLongSeconds)),
      scheduler_pass_(BuildHistogram()
                          .Name("longspan_scheduler_pass_seconds")
                          .Help("Time of a step that ran the scheduler.")
                          .Register(registry_)
                          .Add({}, kFastSeconds)),
      commit_(BuildHistogram()
                  .Name("longspan_store_commit_seconds")
                  .Help("Time of a durable transaction.")
                  .Register(registry_)
                  .Add({}, kFastSeconds)) {}

void ServerMetrics::CountTransition(const core::JobWrite& write, const core::Transaction& transaction) {
  const core::Job& job = write.job;
  const bool inserted = write.expected_version == 0;
  if (!inserted && write.expected_state == job.state) return;
  const std::string from = inserted ? "NONE" : core::Name(write.expected_state);
  transitions_.Add({{"from", from}, {"to", core::Name(job.state)}}).Increment();
  if (!inserted && write.expected_state == core::JobState::kQueued && job.state == core::JobState::kStarting) {
    const auto first =
        std::find_if(transaction.attempts.begin(), transaction.attempts.end(),
                     [&](const core::Attempt& attempt) { return attempt.job_id == job.id && attempt.number == 1; });
    if (first != transaction.attempts.end())
      queue_wait_.Observe(absl::ToDoubleSeconds(first->start_time - job.submit_time));
  }
  if (core::IsTerminal(job.state) && job.start_time != core::kNever && job.end_time != core::kNever) {
    run_duration_.Add({{"outcome", LowerCase(core::Name(job.state))}}, kLongSeconds)
        .Observe(absl::ToDoubleSeconds(job.end_time - job.start_time));
  }
}

void ServerMetrics::Committed(const core::Transaction& transaction, absl::Duration took) {
  commit_.Observe(absl::ToDoubleSeconds(took));
  for (const core::JobWrite& write : transaction.jobs) CountTransition(write, transaction);
}

void ServerMetrics::SchedulerPassed(absl::Duration took) { scheduler_pass_.Observe(absl::ToDoubleSeconds(took)); }

void ServerMetrics::CallEnded(const std::string& method, const std::string& code, absl::Duration took) {
  handled_.Add({{"grpc_method", method}, {"grpc_code", code}}).Increment();
  handling_seconds_.Add({{"grpc_method", method}}, kFastSeconds).Observe(absl::ToDoubleSeconds(took));
}

std::string ServerMetrics::Render(const absl::StatusOr<ClusterSnapshot>& snapshot) const {
  std::vector<MetricFamily> families = registry_.Collect();
  Series up("coordinator_up", "1 while the coordinator answers and its store works.", MetricType::Gauge);
  up.Add({}, snapshot.ok() ? 1 : 0);
  families.push_back(up.Take());
  if (snapshot.ok()) {
    AddJobs(*snapshot, &families);
    AddQueues(*snapshot, &families);
    AddWaits(*snapshot, &families);
    AddJobInfo(*snapshot, &families);
    AddWorkers(*snapshot, &families);
    AddCounters(snapshot->counters, &families);
  }
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

}  // namespace longspan::http
