#include "server/simulator/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace longspan::simulator {
namespace {

constexpr char kDevice[] = "NVIDIA H100";
constexpr char kLargeDevice[] = "NVIDIA H200";
constexpr double kFinished = 0.624;
constexpr double kLimitFactorMax = 4;
constexpr double kQueueSigma = 0.5;
constexpr double kDailyAmplitude = 0.5;
constexpr int kUsersPerQueue = 20;

// Helios, Saturn: share of jobs with up to so many GPUs.
struct SizeShare {
  int64_t gpus;
  double up_to;
};
constexpr SizeShare kSizes[] = {{1, 0.6825},  {2, 0.7105},  {4, 0.7936},  {8, 0.9493},  {12, 0.9495},
                                {16, 0.9746}, {24, 0.9786}, {32, 0.9927}, {40, 0.9941}, {48, 0.9952},
                                {56, 0.9960}, {64, 0.9973}, {80, 1.0}};

// Philly: minutes within which the share of jobs has ended.
struct Quantile {
  double share;
  double minutes;
};
constexpr Quantile kRun1[] = {{0.02, 0.3},   {0.05, 0.71},  {0.10, 0.93}, {0.20, 1.23}, {0.25, 1.92}, {0.30, 3.69},
                              {0.40, 10.35}, {0.50, 19.21}, {0.60, 31.1}, {0.70, 43.8}, {0.80, 90.2}, {0.90, 236},
                              {0.95, 662},   {0.97, 1187},  {0.99, 5029}, {1, 10'000}};
constexpr Quantile kRun2To4[] = {{0.02, 0.16}, {0.05, 0.23},  {0.10, 0.3},   {0.20, 0.6}, {0.25, 1.32},
                                 {0.30, 2.9},  {0.40, 13.16}, {0.50, 29.02}, {0.60, 220}, {0.70, 597},
                                 {0.80, 1459}, {0.90, 3446},  {0.95, 6181},  {1, 10'000}};
constexpr Quantile kRun5To8[] = {{0.02, 0.31},  {0.05, 0.62}, {0.10, 1.27}, {0.20, 7.86}, {0.25, 13.62},
                                 {0.30, 19.21}, {0.40, 66.2}, {0.50, 206},  {0.60, 438},  {0.70, 1187},
                                 {0.80, 2804},  {0.90, 5575}, {0.95, 9336}, {1, 10'000}};
constexpr Quantile kRunAbove8[] = {{0.02, 0.33}, {0.05, 0.58}, {0.10, 0.84}, {0.20, 3.95}, {0.25, 7.86},
                                   {0.30, 15.1}, {0.40, 40.9}, {0.50, 136},  {0.60, 290},  {0.70, 685},
                                   {0.80, 1187}, {0.90, 2902}, {0.95, 5575}, {1, 10'000}};

// Philly: nodes of the virtual clusters.
constexpr int kQueueNodes[] = {64, 32, 16, 64, 64, 16, 32, 16, 8, 8, 32};

// Minutes that people write down.
constexpr double kRoundMinutes[] = {15,   30,   60,   120,    240,    480,    720,    1440,
                                    2880, 4320, 7200, 10'080, 14'400, 20'160, 30'240, 43'200};

// SplitMix64 (Steele, Lea, Flood 2014): the distributions of the standard library differ between libraries.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  double Uniform() {  // [0, 1)
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
  }
  double Normal() {  // Box and Muller
    const double radius = std::sqrt(-2 * std::log(1 - Uniform()));
    return radius * std::cos(2 * std::numbers::pi * Uniform());
  }

 private:
  uint64_t state_;
};

template <size_t kCount>
double Minutes(const Quantile (&quantiles)[kCount], double share) {
  if (share <= quantiles[0].share) return quantiles[0].minutes;
  size_t i = 1;
  while (quantiles[i].share < share) ++i;
  const Quantile& a = quantiles[i - 1];
  const Quantile& b = quantiles[i];
  const double part = (share - a.share) / (b.share - a.share);
  return std::exp(std::log(a.minutes) + part * (std::log(b.minutes) - std::log(a.minutes)));
}

double RunMinutes(int64_t size, double share) {
  if (size == 1) return Minutes(kRun1, share);
  if (size <= 4) return Minutes(kRun2To4, share);
  if (size <= 8) return Minutes(kRun5To8, share);
  return Minutes(kRunAbove8, share);
}

// Whole seconds, one at least.
absl::Duration Seconds(double minutes) { return absl::Seconds(std::max(1.0, std::round(minutes * 60))); }

class Generator {
 public:
  explicit Generator(const GeneratorOptions& options) : options_(options), random_(options.seed) {}

  GeneratedTrace Run() {
    GeneratedTrace trace;
    trace.cluster = MakeCluster();
    MakeQueueShares();
    const double wanted =
        options_.load * static_cast<double>(trace.cluster.SlotCount()) * absl::ToDoubleSeconds(options_.duration);
    for (double asked = 0; asked < wanted;) {
      trace.jobs.push_back(MakeJob());
      trace.jobs.back().submit = absl::Seconds(std::floor(ArrivalSeconds()));
      asked += absl::ToDoubleSeconds(trace.jobs.back().run_time) * static_cast<double>(trace.jobs.back().LargestSize());
    }
    for (int64_t i = 0; i < options_.backlog; ++i) trace.jobs.push_back(MakeJob());
    std::stable_sort(trace.jobs.begin(), trace.jobs.end(),
                     [](const TraceJob& a, const TraceJob& b) { return a.submit < b.submit; });
    for (size_t i = 0; i < trace.jobs.size(); ++i) trace.jobs[i].id = JobId(fmt::format("j{:06}", i + 1));
    return trace;
  }

 private:
  ClusterSpec MakeCluster() {
    ClusterSpec cluster;
    WorkerGroup group;
    group.count = options_.workers;
    group.slots = options_.slots_per_worker;
    group.device = kDevice;
    group.memory_bytes = int64_t{80} << 30;
    group.racks = options_.racks;
    if (options_.required_gpu > 0 && options_.workers > 1) {
      WorkerGroup large = group;
      large.device = kLargeDevice;
      large.memory_bytes = int64_t{141} << 30;
      large.count = options_.workers / 2;
      group.count -= large.count;
      cluster.groups.push_back(large);
    }
    cluster.groups.push_back(group);
    for (size_t q = 0; q < std::size(kQueueNodes); ++q) cluster.queues[Queue(q)].weight = kQueueNodes[q];
    return cluster;
  }

  static std::string Queue(size_t number) { return fmt::format("vc{:02}", number + 1); }

  void MakeQueueShares() {
    double sum = 0;
    for (const int nodes : kQueueNodes)
      sum += nodes * std::exp(kQueueSigma * random_.Normal()), queue_up_to_.push_back(sum);
    for (double& up_to : queue_up_to_) up_to /= sum;
  }

  TraceJob MakeJob() {
    TraceJob job;
    const size_t queue =
        std::upper_bound(queue_up_to_.begin(), queue_up_to_.end() - 1, random_.Uniform()) - queue_up_to_.begin();
    job.queue = Queue(queue);
    job.user = fmt::format("{}-user{:02}", job.queue, static_cast<int>(random_.Uniform() * kUsersPerQueue));
    const double size_share = random_.Uniform();
    job.sizes = {std::find_if(std::begin(kSizes), std::end(kSizes) - 1, [&](const SizeShare& each) {
                   return size_share < each.up_to;
                 })->gpus};
    job.run_time = Seconds(RunMinutes(job.sizes.front(), random_.Uniform()));
    job.planned_run_time = job.run_time;
    const double part = random_.Uniform();
    if (random_.Uniform() >= kFinished) {
      const absl::Duration longest = Seconds(kRoundMinutes[std::size(kRoundMinutes) - 4]);
      job.planned_run_time = std::min(longest, Seconds(absl::ToDoubleMinutes(job.run_time) / std::max(part, 0.01)));
    }
    AddLimit(job);
    AddPriority(job);
    AddSizes(job);
    if (random_.Uniform() < options_.required_gpu) job.requirements.labels["gpu"] = "H200";
    return job;
  }

  void AddLimit(TraceJob& job) {
    const double factor = 1 + random_.Uniform() * (kLimitFactorMax - 1);
    if (random_.Uniform() >= options_.limited) return;
    const double minutes = absl::ToDoubleMinutes(job.planned_run_time) * factor;
    const double* round = std::lower_bound(std::begin(kRoundMinutes), std::end(kRoundMinutes) - 1, minutes);
    job.limit = Seconds(*round);
  }

  void AddPriority(TraceJob& job) {
    const double share = random_.Uniform();
    if (share < options_.high_priority) {
      job.priority = 80;
    } else if (share < options_.high_priority + options_.low_priority) {
      job.priority = 20;
    }
  }

  void AddSizes(TraceJob& job) {
    const int64_t size = job.sizes.back();
    if (random_.Uniform() >= options_.elastic || size < 2) return;
    job.sizes = size % 4 == 0 ? std::vector<int64_t>{size / 4, size / 2, size} : std::vector<int64_t>{size / 2, size};
  }

  // Thinning: the more often by day.
  double ArrivalSeconds() {
    const double length = absl::ToDoubleSeconds(options_.duration);
    while (true) {
      const double time = random_.Uniform() * length;
      const double rate = 1 - kDailyAmplitude * std::cos(2 * std::numbers::pi * time / 86'400);
      if (random_.Uniform() * (1 + kDailyAmplitude) < rate) return time;
    }
  }

  const GeneratorOptions& options_;
  Random random_;
  std::vector<double> queue_up_to_;
};

}  // namespace

GeneratedTrace GenerateTrace(const GeneratorOptions& options) { return Generator(options).Run(); }

}  // namespace longspan::simulator
