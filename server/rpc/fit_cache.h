// What jobs of one shape need of a slot, remembered: a sweep submits hundreds of jobs that differ in nothing that the
// planner reads, and planning is what costs most of a submit.
//
// The key has everything that the answer depends on: the job file without what the planner does not read, the content
// of the model's config.json and of an adapter's, and the kinds of slots. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "proto/support/mutex.h"
#include "server/rpc/plan_job.h"

namespace longspan::rpc {

class FitCache {
 public:
  explicit FitCache(size_t entries_max = 1024) : entries_max_(entries_max) {}

  // `model_files`: contents, in a fixed order.
  static std::string KeyOf(const jobfile::JobSpec& spec, const std::vector<std::string>& model_files,
                           const std::vector<SlotMemory>& slots);

  // FitCheck::memory_bytes_min of a job that fits.
  std::optional<int64_t> Find(const std::string& key);
  // The one that was not asked for longest goes when there are more than entries_max.
  void Put(const std::string& key, int64_t memory_bytes_min);

 private:
  struct Entry {
    std::string key;
    int64_t memory_bytes_min;
  };

  const size_t entries_max_;
  Mutex mutex_;
  std::list<Entry> entries_ GUARDED_BY(mutex_);  // the newest first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_ GUARDED_BY(mutex_);
};

}  // namespace longspan::rpc
