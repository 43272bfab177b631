// A cluster and its queue, written down in lines, and the plan for it in lines.
//
//   worker NAME slots=N [taken=0,1] [memory=GIB] [device=NAME] [rack=R] [zone=Z] [draining] [down] [expected]
//   job NAME sizes=1,2,4 [priority=N] [submit=SECOND] [waited=D] [queue=Q] [estimate=D] [gpu=G] [zone=Z] [memory=GIB]
//   [avoid=W]
//            [not_before=D] [old_ranks] [reserved=a0+a1] [until=D]          sizes=none: it prepares, without a slot
//   gang NAME on=a0+a1 [priority=N] [queue=Q] [started=D] [ends=D] [sizes=1,2,4] [protected=D] [stopping|ending]
//   [gpu=G] queue NAME [weight=X] [used=SLOT_SECONDS] [slots_max=N] clear                          all jobs, gangs and
//   queues plan                           prints what Schedule says
//
// Times are counted from now, gangs' starts back from it. "_" in a value stands for a space.
#pragma once

#include <map>
#include <string>

#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

inline const absl::Time kScenarioNow = absl::FromUnixSeconds(1'000'000);

class Scenario {
 public:
  // What the line says; text for `plan`, nothing for the others. Complains in the text.
  std::string Run(const std::string& line);

  Snapshot& snapshot() { return snapshot_; }

 private:
  using Words = std::map<std::string, std::string>;
  void AddWorker(const std::string& name, const Words& words);
  void AddJob(const std::string& name, const Words& words);
  void AddGang(const std::string& name, const Words& words);
  void AddQueue(const std::string& name, const Words& words);

  Snapshot snapshot_;
};

// "x starts on a0+a1", "y stops for x (preempted)", "kept for x: a0", "1. z GANG_DOES_NOT_FIT: ... (in 1h0m)".
std::string ToText(const Plan& plan, absl::Time now);

}  // namespace longspan::scheduler
