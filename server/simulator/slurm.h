// Slurm's rules as its documentation has them, for comparison: priority/multifactor and sched/backfill.
//
// Modelled, with the documented defaults (slurm.schedmd.com, sources doc/html/*.shtml of SchedMD/slurm):
// - sched_config.html: at every event the first default_queue_depth = 100 jobs are tried in priority order, up to the
//   first that must wait; every bf_interval = 30 s after something happened, backfill goes through the first
//   bf_max_job_test = 100 jobs in priority order. One that can start now without delaying any before it does; any other
//   is planned at the earliest time within bf_window = 1440 min and reserves whole nodes for as long as its limit.
//   Times are rounded up to bf_resolution = 60 s.
// - priority_multifactor.html: priority = 1000 age + 10000 fair share + 1000 job size + 1000 partition, the weights of
//   its first example. Age: time in the queue by PriorityMaxAge = 7 days, 1 at most. Job size: share of the cluster
//   (PriorityFavorSmall = NO). Partition: 0 for all.
// - fair_tree.html: accounts (our queues, one user each) are ranked by LF = S / U, shares by use, both normalised; the
//   factor is the rank from the end by the number of accounts. Use decays with PriorityDecayHalfLife = 7 days; ranks
//   are made anew every PriorityCalcPeriod = 5 min.
// A job's priority in the trace stands for its partition's PriorityTier and comes first.
//
// Not modelled: preemption, QOS, nice, TRES weights, licences, bf_yield; OverTimeLimit = UNLIMITED for jobs that gave
// no limit, whose estimate (the queue's default) is the partition's DefaultTime. Gangs are placed as everywhere here.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "server/scheduler/cluster.h"
#include "server/simulator/policy.h"

namespace longspan::simulator {

struct SlurmOptions {
  double weight_age = 1000;
  double weight_fair_share = 10'000;
  double weight_job_size = 1000;
  absl::Duration max_age = absl::Hours(7 * 24);
  absl::Duration decay_half_life = absl::Hours(7 * 24);
  absl::Duration calc_period = absl::Minutes(5);
  size_t default_queue_depth = 100;
  size_t bf_max_job_test = 100;
  absl::Duration bf_interval = absl::Seconds(30);
  absl::Duration bf_window = absl::Minutes(1440);
  absl::Duration bf_resolution = absl::Seconds(60);
  // Estimates move although nothing happens; Slurm would look every bf_interval.
  absl::Duration bf_interval_idle = absl::Minutes(5);
};

class Slurm : public Policy {
 public:
  explicit Slurm(const SlurmOptions& options) : options_(options) {}

  Decision Pass(const scheduler::Snapshot& snapshot, absl::Time now) override;

 private:
  void AccountUse(const scheduler::Snapshot& snapshot, absl::Time now);
  void RankAccounts(const scheduler::Snapshot& snapshot);
  std::vector<const scheduler::WaitingJob*> ByPriority(const scheduler::Snapshot& snapshot, absl::Time now,
                                                       int64_t slots) const;

  const SlurmOptions options_;
  std::map<std::string, double> use_;    // by queue, decayed slot-seconds
  std::map<std::string, int64_t> held_;  // since use_time_
  absl::Time use_time_ = absl::InfinitePast();
  std::map<std::string, double> fair_share_;  // by queue: the factor
  absl::Time ranks_due_ = absl::InfinitePast();
  absl::Time backfill_due_ = absl::InfinitePast();
};

}  // namespace longspan::simulator
