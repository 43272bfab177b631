#include "tests/sim/job_generator.h"

#include <algorithm>

namespace longspan::sim {

JobPlan MakeJob(World& world, int number, int64_t slots) {
  Random& random = world.random;
  JobPlan plan;
  core::Job& job = plan.job;
  job.name = fmt::format("j{}", number);
  job.request_id = "request-" + job.name;
  job.content_hash = "hash-" + job.name;
  job.spec_json = "{}";
  const int64_t size =
      std::min(slots, random.Chance(0.1) ? slots : random.Integer(1, std::max<int64_t>(1, slots / 2 + 1)));
  job.gang_sizes = {size};
  const bool gives_way = world.options.jobs_give_way;
  if (random.Chance(0.3) && gives_way) {
    for (int64_t larger = size + 1; larger <= slots; larger += random.Integer(1, 2)) job.gang_sizes.push_back(larger);
  }
  // The small queue may hold half of the cluster (ConfiguredQueue); larger gangs would wait there for ever.
  job.queue = size <= std::max<int64_t>(1, slots / 2) && random.Chance(0.3) && gives_way ? kSmallQueue : "default";
  job.priority = gives_way ? 10 * random.Integer(0, 2) : 50;
  job.max_attempts = random.Chance(0.1) ? random.Integer(1, 4) : 1'000'000;
  if (random.Chance(0.05)) job.max_run_time = random.Between(absl::Seconds(2), absl::Seconds(30));

  plan.prepare_units = random.Integer(1, 4);
  plan.steps = random.Integer(5, 25);
  plan.checkpoint_every = random.Integer(2, 6);
  plan.step_time = random.Between(absl::Milliseconds(100), absl::Milliseconds(600));
  if (random.Chance(0.05)) plan.user_error_at = random.Integer(1, plan.steps);
  if (random.Chance(0.05)) plan.resource_error_at = random.Integer(1, plan.steps);
  return plan;
}

core::QueueConfigured ConfiguredQueue(int64_t slots) {
  core::QueueConfigured queue;
  queue.name = kSmallQueue;
  queue.slots_max = std::max<int64_t>(1, slots / 2);
  queue.run_time_default = absl::Seconds(20);
  return queue;
}

bool IsWholeGang(const core::Job& job, int64_t ranks) {
  return std::find(job.gang_sizes.begin(), job.gang_sizes.end(), ranks) != job.gang_sizes.end();
}

bool MayEndAs(const JobPlan& plan, const core::Job& job, bool cancel_sent, const SimulationOptions& options) {
  switch (job.state) {
    case core::JobState::kSucceeded:
      return plan.user_error_at < 0 && plan.resource_error_at < 0 &&
             job.best_step[static_cast<int>(core::Phase::kTrain)] == plan.steps;
    case core::JobState::kCancelled:
      return cancel_sent;
    case core::JobState::kFailed:
      if (job.reason == "USER") return plan.user_error_at >= 0;
      if (job.reason == "RESOURCE") return plan.resource_error_at >= 0;
      if (job.reason == "ATTEMPTS_EXHAUSTED") return job.failed_attempts >= plan.job.max_attempts;
      if (job.reason == "NO_PROGRESS") return job.stalled_attempts >= options.stalled_attempts_max;
      if (job.reason == "RUN_TIME_EXCEEDED") return plan.job.max_run_time < absl::InfiniteDuration();
      return false;
    case core::JobState::kQueued:
    case core::JobState::kStarting:
    case core::JobState::kRunning:
    case core::JobState::kPreempting:
    case core::JobState::kRecovering:
    case core::JobState::kPausing:
    case core::JobState::kPaused:
    case core::JobState::kCancelling:
      return false;
  }
  return false;
}

}  // namespace longspan::sim
