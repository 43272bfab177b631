// Which jobs a seed submits, what their trainers will do, and how such a job may end. All that a simulation knows about
// kinds of jobs is here: a new field of a job (another priority, a queue, an elastic size) is one line in MakeJob, and
// a new way to end is one in MayEndAs.
#pragma once

#include <string>

#include "server/core/events.h"
#include "server/core/types.h"
#include "tests/sim/world.h"

namespace longspan::sim {

struct JobPlan {
  core::Job job;  // as submitted; its id is a fresh one with each try
  // What its trainers do.
  int64_t prepare_units = 3;
  int64_t steps = 20;
  int64_t checkpoint_every = 5;
  absl::Duration step_time;
  int64_t user_error_at = -1;      // training step at which the data turns out to be bad; -1: never
  int64_t resource_error_at = -1;  // or memory runs out
};

// `number` counts the jobs of the simulation; `slots` are those of the whole cluster.
JobPlan MakeJob(World& world, int number, int64_t slots);

// A queue that may hold half of the slots; jobs that fit there may be in it.
inline constexpr char kSmallQueue[] = "small";
core::QueueConfigured ConfiguredQueue(int64_t slots);

// May a gang of so many ranks train?
bool IsWholeGang(const core::Job& job, int64_t ranks);

// Is this a right end, given that faults ended in time? `cancel_sent`: somebody asked to cancel it, answered or not.
bool MayEndAs(const JobPlan& plan, const core::Job& job, bool cancel_sent, const SimulationOptions& options);

}  // namespace longspan::sim
