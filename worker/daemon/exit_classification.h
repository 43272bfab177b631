// Turns the end of a trainer process into what the server is told: whose fault it was, in one sentence.
//
// Pure. The trainer's own last words (`failed`, `done`) weigh more than its exit code, and what the daemon itself did
// to the process weighs more than both.
#pragma once

#include <optional>
#include <string>

#include "longspan/v1/fleet_service.pb.h"
#include "proto/trainer_lines/trainer_lines.h"

namespace longspan::worker {

// How a process ended, as waitid tells it.
struct ProcessEnd {
  int exit_code = -1;    // -1 when a signal ended it
  int signal = 0;        // 0 when none did
  std::string log_tail;  // last bytes of its output
};

struct LastWords {
  std::optional<lines::Failed> failed;
  std::optional<lines::Done> done;
  std::string killed_because;  // set when the daemon killed it, a clause: "its lease ran out"
};

inline constexpr size_t kLogTailBytesMax = 4096;

// `age_ms` stays 0; the log tail is cut to kLogTailBytesMax and made valid UTF-8.
v1::RankExit ClassifyExit(const ProcessEnd& end, const LastWords& words);

}  // namespace longspan::worker
