// What every part of a simulation shares: its options, chance, time, and the transcript.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <deque>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "tests/sim/random.h"
#include "tests/sim/timeline.h"

namespace longspan::sim {

// How often things go wrong. Probabilities are per message, per commit or per step of a process; a mean time is between
// two of their kind in the whole cluster (infinite: never).
struct Faults {
  double message_lost = 0;
  double message_doubled = 0;
  double message_delayed = 0;                                    // by seconds, so it also comes out of order
  absl::Duration cut_every = absl::InfiniteDuration();           // one or both directions between two ends
  absl::Duration daemon_crash_every = absl::InfiniteDuration();  // its ranks die with it
  absl::Duration daemon_leave_every = absl::InfiniteDuration();  // SIGTERM
  absl::Duration freeze_every = absl::InfiniteDuration();        // SIGSTOP of a daemon, or its machine sleeps
  absl::Duration clock_jump_every = absl::InfiniteDuration();    // of a worker's wall clock
  absl::Duration server_crash_every = absl::InfiniteDuration();
  double server_crash_before_commit = 0;
  double server_crash_after_commit = 0;  // and before any answer
  double server_crash_in_commit = 0;     // in the middle of its writes; only with SQLite
  double power_cut = 0;                  // of these crashes: what was not synced is gone or torn
  double commit_fails = 0;               // once, with an I/O error of the log
  absl::Duration disk_full_every = absl::InfiniteDuration();
  absl::Duration command_every = absl::InfiniteDuration();  // cancel, pause, resume, drain, undrain
  double rank_crashes = 0;
  double rank_hangs = 0;  // SIGSTOP, or it no longer does anything and ignores SIGTERM
  double spawn_fails = 0;
  double slow_start = 0;  // beyond the start deadline
  double slow_stop = 0;   // beyond the grace
  double slow_checkpoint = 0;
  double peers_cut = 0;  // a connection between ranks breaks
};

struct SimulationOptions {
  uint64_t seed = 0;
  bool transcript = false;
  bool sqlite = false;
  int workers = 3;
  int slots_per_worker = 2;  // at most
  int jobs = 5;
  absl::Duration faulty = absl::Seconds(60);    // faults happen this long
  absl::Duration calm_max = absl::Minutes(20);  // and then everything must end within
  int64_t stalled_attempts_max = 1'000'000;     // giving up is for some seeds only: faults are frequent here
  absl::Duration lease = absl::Seconds(10);
  bool jobs_give_way = true;  // priorities, elastic gangs, a queue with a limit
  double clock_drift = 0.02;
  absl::Duration server_away_max = absl::Seconds(25);  // after it died
  Faults faults;
};

class World {
 public:
  explicit World(const SimulationOptions& o) : options(o), random(o.seed), faults(o.faults) {}

  // One line of the transcript.
  template <typename... Arguments>
  void Say(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
    if (!options.transcript) return;
    lines.push_back(
        fmt::format("{:9.3f}  {}", timeline.seconds(), fmt::format(format, std::forward<Arguments>(arguments)...)));
  }

  const SimulationOptions options;
  Random random;
  Timeline timeline;
  Faults faults;  // none of them once the calm begins
  bool faulty = true;
  std::deque<std::string> lines;
};

}  // namespace longspan::sim
