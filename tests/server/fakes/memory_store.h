// A store in memory with the same guards as the real one, so that the core can be tested without files: what Load gives
// is what a restarted server would find.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "server/core/events.h"

namespace longspan::testing {

class MemoryStore {
 public:
  // Aborts the test when a guard fails, an event leaves a gap, a state is entered against the table, or a slot has two
  // owners.
  void Commit(const core::Transaction& transaction);
  core::StoredState Load() const;
  const std::vector<core::JobEvent>& Events(const JobId& job_id) const { return events_.at(job_id); }
  const std::vector<core::Sample>& Samples(const JobId& job_id) const { return samples_.at(job_id); }

 private:
  void CheckSlots() const;

  std::vector<JobId> order_;
  std::map<JobId, core::StoredState::JobRows> jobs_;
  std::map<JobId, std::vector<core::JobEvent>> events_;
  std::map<JobId, std::vector<core::Sample>> samples_;
  std::map<WorkerId, core::Worker> workers_;
  std::map<std::string, core::Queue> queues_;
};

}  // namespace longspan::testing
