// A worker daemon reduced to its contract: reports everything it has, makes its ranks what the newest answer says.
// Tests say what the processes do. A killed rank is gone at once.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "server/core/core.h"

namespace longspan::testing {

class FakeWorker {
 public:
  using Key = std::tuple<JobId, int64_t, int64_t>;  // job, attempt, rank

  struct FakeRank {
    core::DesiredRank desired;
    core::RankReport report;  // what is not yet acknowledged
    absl::Time exit_time;
    int64_t last_sample = 0;
  };

  FakeWorker(WorkerId id, int64_t slots) : id_(std::move(id)), slots_(slots) {}

  // The newest call's number is `sequence()`; only its answer may be applied.
  core::WorkerReport MakeReport(absl::Time now);
  int64_t sequence() const { return sequence_; }

  // What it did, one line each.
  std::vector<std::string> Apply(const core::ReportReply& reply, const core::DesiredRanks& desired, absl::Time now);

  // A new process: the ranks of the old one are gone.
  void Restart();
  std::vector<std::string> KillAll(absl::Time now);

  // What the processes do.
  void Exit(const Key& key, core::RankExit exit, absl::Time now);
  void AddSample(const Key& key, core::Phase phase, int64_t step, absl::Time now);
  void AddCheckpoint(const Key& key, const std::string& name, int64_t step);

  std::map<Key, FakeRank>& ranks() { return ranks_; }
  const WorkerId& id() const { return id_; }
  bool leaving = false;

 private:
  const WorkerId id_;
  const int64_t slots_;
  int incarnation_ = 1;
  int64_t sequence_ = 0;
  std::string fingerprint_;
  std::map<Key, FakeRank> ranks_;
};

}  // namespace longspan::testing
