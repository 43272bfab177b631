#include "worker/daemon/worker_metrics.h"

#include <prometheus/text_serializer.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string_view>
#include <utility>

namespace longspan::worker {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;

// Names of values in progress lines that are shown as they are.
struct GaugeValue {
  const char* value;
  const char* metric;
  const char* help;
};
constexpr GaugeValue kGaugeValues[] = {
    {"loss", "longspan_train_loss", "Loss of the newest step, nats per scored token."},
    {"grad_norm", "longspan_train_grad_norm", "Global L2 norm of the newest step's gradient, before clipping."},
    {"learning_rate", "longspan_train_learning_rate", "Learning rate of the newest step."},
    {"tokens_per_second", "longspan_train_tokens_per_second", "Tokens trained on per second, over all ranks."},
    {"mfu", "longspan_train_mfu_ratio", "Model FLOPs of the newest step over what the devices could do."},
};

// Values that grow; they are shown as counters of the attempt.
constexpr GaugeValue kCounterValues[] = {
    {"tokens_total", "longspan_train_tokens_total", "Tokens trained on in this attempt, over all ranks."},
    {"model_flops_total", "longspan_train_model_flops_total",
     "Model FLOPs done in this attempt, without recomputation."},
    {"nonfinite_steps", "longspan_train_nonfinite_steps_total",
     "Steps of this attempt skipped for a non-finite loss or gradient."},
    {"allreduce_bytes_total", "longspan_allreduce_bytes_total",
     "Bytes that rank 0 reduced with others in this attempt."},
};

// collective_all_gather_bytes_total -> metric{collective="all_gather"}; the first whose end fits.
constexpr std::string_view kCollectivePrefix = "collective_";
struct CollectiveValue {
  std::string_view suffix;
  const char* metric;
  const char* help;
};
constexpr CollectiveValue kCollectiveValues[] = {
    {"_bytes_total", "longspan_collective_bytes_total",
     "Bytes of rank 0 in this attempt: put into all-reduces, received in all-gathers, sent in exchanges."},
    {"_wait_seconds_total", "longspan_collective_wait_seconds_total",
     "Seconds in which rank 0's computation stood still for collectives, in this attempt."},
    {"_seconds_total", "longspan_collective_seconds_total",
     "Seconds in which at least one collective of the kind was under way on rank 0, in this attempt."},
};

constexpr std::string_view kSecondsPrefix = "seconds_";      // seconds_forward -> phase="forward"
constexpr std::string_view kSecondsOfStep = "seconds_step";  // the sum of the others and what lies between
constexpr std::string_view kMemoryPrefix = "memory_";        // memory_peak_bytes -> kind="peak"
constexpr std::string_view kBytesSuffix = "_bytes";

prometheus::Histogram::BucketBoundaries SecondsBuckets() {
  return {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300};
}

std::string_view NameOf(v1::RankReport::State state) {
  switch (state) {
    case v1::RankReport::STATE_STARTING:
      return "starting";
    case v1::RankReport::STATE_RUNNING:
      return "running";
    case v1::RankReport::STATE_STOPPING:
      return "stopping";
    case v1::RankReport::STATE_EXITED:
      return "exited";
    case v1::RankReport::STATE_UNSPECIFIED:
    case v1::RankReport_State_RankReport_State_INT_MIN_SENTINEL_DO_NOT_USE_:
    case v1::RankReport_State_RankReport_State_INT_MAX_SENTINEL_DO_NOT_USE_:
      break;
  }
  return "unknown";
}

template <class Builder>
auto& Add(Builder builder, prometheus::Registry& registry, const char* name, const char* help) {
  return builder.Name(name).Help(help).Register(registry);
}

}  // namespace

struct WorkerMetrics::Families {
  explicit Families(prometheus::Registry& registry)
      : step(Add(BuildGauge(), registry, "longspan_train_step", "Steps done.")),
        progress(Add(BuildGauge(), registry, "longspan_train_progress_ratio", "Steps done over steps to do.")),
        last_progress(Add(BuildGauge(), registry, "longspan_train_last_progress_timestamp_seconds",
                          "When the step last moved, Unix time.")),
        memory(Add(BuildGauge(), registry, "longspan_train_memory_bytes", "Memory of rank 0 by kind.")),
        phase_seconds(
            Add(BuildHistogram(), registry, "longspan_train_step_phase_seconds", "Seconds of a step by phase.")),
        checkpoint_seconds(Add(BuildGauge(), registry, "longspan_checkpoint_save_seconds",
                               "Seconds from the copy to the durable manifest, newest checkpoint.")),
        checkpoint_bytes(Add(BuildGauge(), registry, "longspan_checkpoint_bytes", "Size of the newest checkpoint.")),
        checkpoint_time(Add(BuildGauge(), registry, "longspan_checkpoint_last_success_timestamp_seconds",
                            "When the newest checkpoint became durable, Unix time.")),
        perplexity(Add(BuildGauge(), registry, "longspan_eval_perplexity", "Perplexity by window length and model.")),
        ranks(Add(BuildGauge(), registry, "longspan_worker_ranks", "Ranks on this worker by state.")),
        lease(Add(BuildGauge(), registry, "longspan_worker_lease_remaining_seconds",
                  "How long this worker may still believe that it owns its ranks.")
                  .Add({})),
        malformed(Add(BuildCounter(), registry, "longspan_worker_malformed_lines_total",
                      "Trainer lines that were dropped: malformed or too long.")
                      .Add({})),
        log_dropped(Add(BuildCounter(), registry, "longspan_worker_log_dropped_bytes_total",
                        "Bytes of rank output that were not spooled.")
                        .Add({})),
        failures(Add(BuildCounter(), registry, "longspan_worker_synchronize_failures_total",
                     "Synchronize calls without an answer.")
                     .Add({})),
        latency(Add(BuildHistogram(), registry, "longspan_worker_synchronize_seconds",
                    "Seconds of answered Synchronize calls; the server holds idle ones for some seconds.")
                    .Add({}, SecondsBuckets())) {
    for (const GaugeValue& value : kGaugeValues)
      gauges[value.value] = &Add(BuildGauge(), registry, value.metric, value.help);
    for (const GaugeValue& value : kCounterValues) {
      counters[value.value] = &Add(BuildCounter(), registry, value.metric, value.help);
    }
    for (const CollectiveValue& value : kCollectiveValues) {
      collectives.push_back(&Add(BuildCounter(), registry, value.metric, value.help));
    }
  }

  std::map<std::string, Family<Gauge>*> gauges;
  std::map<std::string, Family<Counter>*> counters;
  std::vector<Family<Counter>*> collectives;  // of each of kCollectiveValues
  Family<Gauge>& step;
  Family<Gauge>& progress;
  Family<Gauge>& last_progress;
  Family<Gauge>& memory;
  Family<Histogram>& phase_seconds;
  Family<Gauge>& checkpoint_seconds;
  Family<Gauge>& checkpoint_bytes;
  Family<Gauge>& checkpoint_time;
  Family<Gauge>& perplexity;
  Family<Gauge>& ranks;
  Gauge& lease;
  Counter& malformed;
  Counter& log_dropped;
  Counter& failures;
  Histogram& latency;
};

// What a GPU cannot tell is NaN, as Prometheus says it.
struct WorkerMetrics::GpuSeries {
  Gauge& utilization;
  Gauge& memory_used;
  Gauge& temperature;
  Gauge& power;
};

struct WorkerMetrics::Job {
  static constexpr size_t kSeriesMax = 200;  // a trainer cannot fill the memory with invented names

  Job(std::string id, int64_t number, bool starts_at_zero)
      : job_id(std::move(id)), attempt(number), fresh(starts_at_zero) {}
  ~Job() {
    for (const auto& remove : removers) remove();
  }

  // The series of this job in `family`, made on first use; null above kSeriesMax.
  template <class Metric, class... Arguments>
  Metric* Series(Family<Metric>& family, Labels labels, const Arguments&... arguments) {
    labels["job_id"] = job_id;
    const auto key = std::make_pair(static_cast<const void*>(&family), labels);
    const auto found = series.find(key);
    if (found != series.end()) return static_cast<Metric*>(found->second);
    if (series.size() >= kSeriesMax) return nullptr;
    Metric* metric = &family.Add(labels, arguments...);
    series.emplace(key, metric);
    removers.push_back([&family, metric] { family.Remove(metric); });
    return metric;
  }

  void Set(Family<Gauge>& family, double value, Labels labels = {}) {
    if (Gauge* gauge = Series(family, std::move(labels))) gauge->Set(value);
  }

  // `total` as the trainer counts it; the counter shows what was added in this attempt. `of_attempt`: so does the
  // trainer.
  void CountUpTo(Family<Counter>& family, const std::string& name, double total, const Labels& labels = {},
                 bool of_attempt = false) {
    if (!std::isfinite(total)) return;
    const auto [known, first] = totals.try_emplace(name, fresh || of_attempt ? 0.0 : total);
    Counter* counter = Series(family, labels);
    if (counter != nullptr && total > known->second) counter->Increment(total - known->second);
    known->second = std::max(known->second, total);
  }

  const std::string job_id;
  const int64_t attempt;
  const bool fresh;
  std::map<std::pair<const void*, Labels>, void*> series;
  std::map<std::string, double> totals;
  std::vector<std::function<void()>> removers;
  int64_t last_step = -1;
  absl::Time ended_at = absl::InfiniteFuture();
};

WorkerMetrics::WorkerMetrics(absl::Duration kept_after_end)
    : kept_after_end_(kept_after_end), families_(std::make_unique<Families>(registry_)) {
  SetRanks({});
}

WorkerMetrics::~WorkerMetrics() = default;

void WorkerMetrics::WatchGpus(const Gpus* gpus) {
  gpus_ = gpus;
  if (gpus == nullptr) return;
  auto& total = Add(BuildGauge(), registry_, "longspan_gpu_memory_total_bytes", "Memory of the GPU.");
  auto& utilization = Add(BuildGauge(), registry_, "longspan_gpu_utilization_ratio",
                          "Share of time in which the GPU ran a kernel, as the driver averages it.");
  auto& used = Add(BuildGauge(), registry_, "longspan_gpu_memory_used_bytes", "Memory of the GPU that is in use.");
  auto& temperature = Add(BuildGauge(), registry_, "longspan_gpu_temperature_celsius", "Temperature of the GPU.");
  auto& power = Add(BuildGauge(), registry_, "longspan_gpu_power_watts", "Power that the GPU draws.");
  for (size_t index = 0; index < gpus->all().size(); ++index) {
    const Gpu& gpu = gpus->all()[index];
    const Labels labels = {{"gpu", std::to_string(index)}, {"uuid", gpu.uuid}, {"name", gpu.name}};
    total.Add(labels).Set(static_cast<double>(gpu.memory_bytes));
    gpu_series_.push_back({utilization.Add(labels), used.Add(labels), temperature.Add(labels), power.Add(labels)});
  }
}

void WorkerMetrics::ReadGpus() const {
  const std::lock_guard lock(gpus_mutex_);
  const double nothing = std::numeric_limits<double>::quiet_NaN();
  for (size_t index = 0; index < gpu_series_.size(); ++index) {
    const GpuReading reading = gpus_->Read(index);
    const GpuSeries& series = gpu_series_[index];
    series.utilization.Set(reading.utilization.value_or(nothing));
    series.memory_used.Set(reading.memory_used_bytes ? static_cast<double>(*reading.memory_used_bytes) : nothing);
    series.temperature.Set(reading.temperature_celsius.value_or(nothing));
    series.power.Set(reading.power_watts.value_or(nothing));
  }
}

std::string WorkerMetrics::Scrape() const {
  ReadGpus();
  return prometheus::TextSerializer().Serialize(registry_.Collect());
}

WorkerMetrics::Job& WorkerMetrics::JobOf(const RankKey& key, bool fresh) {
  std::unique_ptr<Job>& job = jobs_[key.job_id];
  if (job == nullptr || job->attempt < key.attempt) {
    job.reset();  // first remove the old series, then make the new ones
    job = std::make_unique<Job>(key.job_id, key.attempt, fresh);
  }
  return *job;
}

void WorkerMetrics::OnLine(const RankKey& key, bool fresh, const lines::FromTrainer& line, absl::Time wall) {
  if (key.rank != 0) return;
  Job& job = JobOf(key, fresh);
  if (job.attempt != key.attempt) return;
  if (const auto* progress = std::get_if<lines::Progress>(&line)) {
    TakeProgress(job, *progress, wall);
  } else if (const auto* checkpoint = std::get_if<lines::Checkpoint>(&line)) {
    job.Set(families_->checkpoint_seconds, checkpoint->seconds);
    job.Set(families_->checkpoint_bytes, static_cast<double>(checkpoint->size_bytes));
    job.Set(families_->checkpoint_time, absl::ToDoubleSeconds(wall - absl::UnixEpoch()));
  } else if (const auto* row = std::get_if<lines::Evaluation>(&line); row != nullptr && row->examples == 0) {
    job.Set(families_->perplexity, row->perplexity, {{"length", std::to_string(row->length)}, {"model", row->model}});
  }
}

void WorkerMetrics::TakeProgress(Job& job, const lines::Progress& progress, absl::Time wall) {
  if (progress.phase != "train") return;
  job.Set(families_->step, static_cast<double>(progress.step));
  if (progress.steps > 0) {
    job.Set(families_->progress, static_cast<double>(progress.step) / static_cast<double>(progress.steps));
  }
  if (progress.step != job.last_step) {
    job.last_step = progress.step;
    job.Set(families_->last_progress, absl::ToDoubleSeconds(wall - absl::UnixEpoch()));
  }
  for (const auto& [name, value] : progress.values) {
    if (const auto gauge = families_->gauges.find(name); gauge != families_->gauges.end()) {
      job.Set(*gauge->second, value);
    } else if (const auto counter = families_->counters.find(name); counter != families_->counters.end()) {
      job.CountUpTo(*counter->second, name, value);
    } else if (name.starts_with(kCollectivePrefix)) {
      TakeCollective(job, name, value);
    } else if (name.starts_with(kSecondsPrefix) && name != kSecondsOfStep) {
      Histogram* seconds =
          job.Series(families_->phase_seconds, {{"phase", name.substr(kSecondsPrefix.size())}}, SecondsBuckets());
      if (seconds != nullptr && std::isfinite(value)) seconds->Observe(value);
    } else if (name.starts_with(kMemoryPrefix) && name.ends_with(kBytesSuffix) &&
               name.size() > kMemoryPrefix.size() + kBytesSuffix.size()) {
      const std::string kind =
          name.substr(kMemoryPrefix.size(), name.size() - kMemoryPrefix.size() - kBytesSuffix.size());
      job.Set(families_->memory, value, {{"kind", kind}});
    }
  }
}

void WorkerMetrics::TakeCollective(Job& job, const std::string& name, double total) {
  const std::string_view rest = std::string_view(name).substr(kCollectivePrefix.size());
  for (size_t index = 0; index < std::size(kCollectiveValues); ++index) {
    const std::string_view suffix = kCollectiveValues[index].suffix;
    if (!rest.ends_with(suffix) || rest.size() == suffix.size()) continue;
    const Labels labels = {{"collective", std::string(rest.substr(0, rest.size() - suffix.size()))}};
    job.CountUpTo(*families_->collectives[index], name, total, labels, /*of_attempt=*/true);
    return;
  }
}

void WorkerMetrics::OnRankEnded(const RankKey& key, absl::Time now) {
  const auto found = jobs_.find(key.job_id);
  if (key.rank == 0 && found != jobs_.end() && found->second->attempt == key.attempt) found->second->ended_at = now;
}

void WorkerMetrics::Sweep(absl::Time now) {
  std::erase_if(jobs_, [&](const auto& entry) { return entry.second->ended_at + kept_after_end_ <= now; });
}

void WorkerMetrics::SetRanks(const std::map<v1::RankReport::State, int64_t>& counts) {
  for (const auto state : {v1::RankReport::STATE_STARTING, v1::RankReport::STATE_RUNNING,
                           v1::RankReport::STATE_STOPPING, v1::RankReport::STATE_EXITED}) {
    const auto found = counts.find(state);
    families_->ranks.Add({{"state", std::string(NameOf(state))}})
        .Set(found == counts.end() ? 0.0 : static_cast<double>(found->second));
  }
}

void WorkerMetrics::SetLeaseRemaining(absl::Duration remaining) {
  families_->lease.Set(std::max(0.0, absl::ToDoubleSeconds(remaining)));
}
void WorkerMetrics::CountMalformedLines(int64_t lines) { families_->malformed.Increment(static_cast<double>(lines)); }
void WorkerMetrics::CountDroppedLogBytes(int64_t bytes) {
  families_->log_dropped.Increment(static_cast<double>(bytes));
}
void WorkerMetrics::ObserveSynchronize(absl::Duration latency, bool answered) {
  if (answered) {
    families_->latency.Observe(absl::ToDoubleSeconds(latency));
  } else {
    families_->failures.Increment();
  }
}

}  // namespace longspan::worker
