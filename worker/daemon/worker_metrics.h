// What Prometheus sees of this worker: the training of its rank 0s, and the daemon itself. README.md lists the series.
//
// Thread-safe towards scrapes; all other calls come from the daemon's loop. A job's series show the newest attempt that
// ran here and go away `kept_after_end` after it ended. Counters start at zero in each attempt.
#pragma once

#include <absl/time/time.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "longspan/v1/fleet_service.pb.h"
#include "proto/trainer_lines/trainer_lines.h"
#include "worker/daemon/gpus.h"
#include "worker/daemon/rank_key.h"

namespace longspan::worker {

class WorkerMetrics {
 public:
  explicit WorkerMetrics(absl::Duration kept_after_end = absl::Minutes(5));
  ~WorkerMetrics();

  // GPUs that are read at every scrape, one at a time; null: none. They outlive this object. Call before the first
  // scrape.
  void WatchGpus(const Gpus* gpus);

  // Text format 0.0.4.
  std::string Scrape() const;

  // A line of any rank; those of rank 0 are shown. `fresh`: the attempt did not resume, so its counters began at zero.
  void OnLine(const RankKey& key, bool fresh, const lines::FromTrainer& line, absl::Time wall);
  void OnRankEnded(const RankKey& key, absl::Time now);
  // Removes the series of jobs that ended long ago.
  void Sweep(absl::Time now);

  void SetRanks(const std::map<v1::RankReport::State, int64_t>& counts);
  void SetLeaseRemaining(absl::Duration remaining);
  void CountMalformedLines(int64_t lines);
  void CountDroppedLogBytes(int64_t bytes);
  void ObserveSynchronize(absl::Duration latency, bool answered);

 private:
  template <class Metric>
  using Family = prometheus::Family<Metric>;
  struct Families;
  struct GpuSeries;
  // The series of one job, and what removes them.
  struct Job;

  void ReadGpus() const;
  Job& JobOf(const RankKey& key, bool fresh);
  void TakeProgress(Job& job, const lines::Progress& progress, absl::Time wall);
  void TakeCollective(Job& job, const std::string& name, double total);

  const absl::Duration kept_after_end_;
  prometheus::Registry registry_;
  std::unique_ptr<Families> families_;
  std::map<std::string, std::unique_ptr<Job>> jobs_;
  const Gpus* gpus_ = nullptr;
  std::vector<GpuSeries> gpu_series_;  // of each
  mutable std::mutex gpus_mutex_;      // of reading them: scrapes may come from several threads
};

}  // namespace longspan::worker
