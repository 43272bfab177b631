// What must hold after every event of a simulation, each with a name.
//
// Looks from outside: at processes that exist, at transactions as they become durable, at what workers and clients are
// told, and at what a restarted server finds. It keeps its own copy of what is durable and takes nothing from the
// core's word. The first violation is kept; the simulation ends with it. README.md explains each name.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "longspan/v1/fleet_service.pb.h"
#include "server/core/core.h"

namespace longspan::sim {

struct Violation {
  std::string invariant;
  std::string text;
};

// A process as it was started.
struct ProcessRow {
  int64_t id = 0;
  std::string job_id;
  int64_t attempt = 0;
  int64_t rank = 0;
  std::string worker;
  int64_t slot = -1;
  int64_t world_size = 0;
  std::string command;
  std::string resume_from;
  bool resume_is_written = true;  // it lies whole on the storage
  bool daemon_was_frozen = false;
};

class Invariants {
 public:
  // `can_act`: the process executes now: it is not stopped, hung, asleep or about to end.
  void WatchProcesses(std::function<bool(int64_t id)> can_act) { can_act_ = std::move(can_act); }

  // ---- processes ----
  void OnSpawn(const ProcessRow& process);
  void OnProcessGone(int64_t id) { processes_.erase(id); }
  void OnDaemonFrozen(int64_t id);
  void OnTrainingStep(const std::string& job_id, int64_t attempt, int64_t step, const std::vector<int64_t>& members);
  // After every event; looks only when a process was started or woken since.
  void CheckProcesses();
  void ProcessesChanged() { processes_changed_ = true; }

  // ---- the store ----
  // Before it is given to the store.
  void CheckTransaction(const core::Transaction& transaction);
  void OnCommitted(const core::Transaction& transaction);
  // The server died in the middle of the commit: it is there, or it is not.
  void OnCommitUncertain(const core::Transaction& transaction) { uncertain_ = transaction; }
  // What a restarted server finds.
  void OnLoaded(const core::StoredState& state);

  // ---- the server's words ----
  void OnAcknowledged(const v1::RankAcknowledgement& acknowledgement);            // a worker hears it
  void OnToldRecorded(const std::string& job_id, const std::string& checkpoint);  // a trainer hears it
  void OnSubmitAcknowledged(const std::string& request_id, const JobId& job_id);
  void OnSubmitRefused(const std::string& request_id, bool disk_full);
  void OnCancelAcknowledged(const JobId& job_id) { cancelled_.insert(job_id); }
  void OnPauseAcknowledged(const JobId& job_id) { paused_.insert(job_id); }
  void OnResumeSent(const JobId& job_id) { paused_.erase(job_id); }
  void OnDrainAcknowledged(const WorkerId& worker_id) { drained_.insert(worker_id); }
  void OnUndrainSent(const WorkerId& worker_id) { drained_.erase(worker_id); }
  // The core has nothing more to do at this moment.
  void CheckWaiting(const core::Core& core);
  // `core` acts on what `state` says.
  void CompareWithStore(const core::Core& core, const core::StoredState& state, const core::CoreOptions& options,
                        absl::Time now);

  void Fail(const char* invariant, std::string text);
  const std::optional<Violation>& violation() const { return violation_; }
  // Durable.
  const std::map<JobId, core::Job>& jobs() const { return jobs_; }
  int64_t checks() const { return checks_; }

 private:
  using RankKey = std::tuple<std::string, int64_t, int64_t>;  // job, attempt, rank

  const core::Rank* FindRank(const std::string& job_id, int64_t attempt, int64_t rank) const;
  bool Counts(const ProcessRow& process) const;
  void CheckEvents(const core::Transaction& transaction);
  void CheckJobs(const core::Transaction& transaction);
  void CheckAttempt(const core::Transaction& transaction, const core::Attempt& attempt);
  void CheckNewAttempt(const core::Transaction& transaction, const core::Attempt& attempt);
  void CheckSamples(const core::Transaction& transaction);
  void CheckOwners(const core::Transaction& transaction);
  bool IsStored(const core::Attempt& attempt, const core::StoredState& state);

  std::function<bool(int64_t)> can_act_;
  std::optional<Violation> violation_;
  int64_t checks_ = 0;

  std::map<int64_t, ProcessRow> processes_;  // that exist
  std::set<RankKey> ever_run_;
  bool processes_changed_ = false;

  std::map<JobId, core::Job> jobs_;
  std::map<JobId, std::map<int64_t, core::Attempt>> attempts_;
  std::map<JobId, std::set<std::string>> checkpoints_;
  std::map<WorkerId, core::Worker> workers_;
  std::map<std::pair<WorkerId, int64_t>, JobId> owners_;  // of slots
  std::map<std::pair<WorkerId, int64_t>, JobId> owners_after_;
  std::map<std::tuple<JobId, int64_t, int>, int64_t> newest_samples_;  // steps, by job, attempt and phase
  std::map<std::tuple<JobId, int64_t, int>, int64_t> samples_after_;
  std::optional<core::Transaction> uncertain_;

  std::map<std::string, JobId> acknowledged_;  // by request id
  std::set<JobId> cancelled_;
  std::set<JobId> paused_;
  std::set<WorkerId> drained_;
};

}  // namespace longspan::sim
