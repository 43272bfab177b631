#include "tests/server/fakes/memory_store.h"

#include <algorithm>

#include "proto/support/check.h"
#include "server/core/transitions.h"

namespace longspan::testing {
namespace {

template <typename Row, typename Same>
void Upsert(std::vector<Row>& rows, const Row& row, Same same) {
  const auto it = std::find_if(rows.begin(), rows.end(), same);
  if (it == rows.end()) {
    rows.push_back(row);
  } else {
    *it = row;
  }
}

}  // namespace

void MemoryStore::Commit(const core::Transaction& transaction) {
  for (const core::JobWrite& write : transaction.jobs) {
    const JobId& id = write.job.id;
    if (write.expected_version == 0) {
      CHECK(!jobs_.contains(id));
      order_.push_back(id);
    } else {
      const core::Job& stored = jobs_.at(id).job;
      CHECK_EQ(stored.version, write.expected_version) << id;
      CHECK(stored.state == write.expected_state) << id;
      CHECK(!core::IsTerminal(stored.state) || stored.state == write.job.state) << id << " left a terminal state";
    }
    jobs_[id].job = write.job;
  }
  for (const core::AttemptWrite& write : transaction.attempts) {
    core::Attempt attempt = write;
    std::vector<core::Attempt>& rows = jobs_.at(attempt.job_id).attempts;
    const auto same = [&](const auto& row) { return row.number == attempt.number; };
    if (!write.ranks_changed) {
      const auto stored = std::find_if(rows.begin(), rows.end(), same);
      CHECK(stored != rows.end()) << attempt.job_id << " attempt " << attempt.number;
      attempt.ranks = stored->ranks;
    }
    Upsert(rows, attempt, same);
  }
  for (const auto& [job_id, event] : transaction.events) {
    std::vector<core::JobEvent>& events = events_[job_id];
    CHECK_EQ(event.sequence, static_cast<int64_t>(events.size()) + 1) << job_id;
    if (!events.empty() && events.back().state != event.state) {
      CHECK(core::IsAllowed(events.back().state, event.state)) << job_id;
    }
    events.push_back(event);
  }
  for (const auto& [job_id, sample] : transaction.samples) {
    std::vector<core::Sample>& samples = samples_[job_id];
    CHECK_EQ(sample.sequence, static_cast<int64_t>(samples.size()) + 1) << job_id;
    samples.push_back(sample);
    jobs_.at(job_id).newest_sample = sample;
  }
  for (const auto& [job_id, row] : transaction.checkpoints) {
    for (const core::Checkpoint& known : jobs_.at(job_id).checkpoints) CHECK(known.name != row.name);
    jobs_.at(job_id).checkpoints.push_back(row);
  }
  for (const auto& [job_id, row] : transaction.evaluations) {
    Upsert(jobs_.at(job_id).evaluations, row, [&row = row](const core::Evaluation& known) {
      return known.model == row.model && known.length == row.length && known.protocol == row.protocol &&
             known.step == row.step;
    });
  }
  for (const auto& [job_id, row] : transaction.artifacts) {
    Upsert(jobs_.at(job_id).artifacts, row,
           [&row = row](const core::Artifact& known) { return known.kind == row.kind; });
  }
  for (const core::Worker& worker : transaction.workers) workers_[worker.id] = worker;
  for (const JobId& job_id : transaction.deleted_jobs) {
    CHECK(core::IsTerminal(jobs_.at(job_id).job.state)) << job_id << " is deleted before its end";
    jobs_.erase(job_id);
    events_.erase(job_id);
    samples_.erase(job_id);
    std::erase(order_, job_id);
  }
  for (const core::Queue& queue : transaction.queues) queues_[queue.name] = queue;
  CheckSlots();
}

void MemoryStore::CheckSlots() const {
  std::map<std::pair<WorkerId, int64_t>, JobId> owners;
  for (const auto& [job_id, rows] : jobs_) {
    for (const core::Attempt& attempt : rows.attempts) {
      for (const core::Rank& rank : attempt.ranks) {
        if (rank.released || rank.slot < 0) continue;
        CHECK(owners.emplace(std::pair(rank.worker_id, rank.slot), job_id).second)
            << "slot " << rank.slot << " of " << rank.worker_id << " belongs to " << job_id << " and to another";
      }
    }
  }
}

core::StoredState MemoryStore::Load() const {
  core::StoredState state;
  for (const JobId& job_id : order_) state.jobs.push_back(jobs_.at(job_id));
  for (const auto& [name, queue] : queues_) state.queues.push_back(queue);
  for (const auto& [worker_id, worker] : workers_) {
    core::Worker& stored = state.workers.emplace_back(worker);
    stored.sequence = 0;
    stored.up = false;
    stored.lease_end = stored.release_time = core::kNever;
  }
  return state;
}

}  // namespace longspan::testing
