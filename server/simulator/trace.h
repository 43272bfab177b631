// A trace: what was submitted to a cluster and when, one JSON object a line.
//
//   {"id": "j1", "submit": 0, "slots": 8, "run_time": 3600, "limit": 7200, "queue": "vision"}
//
// Seconds throughout. README.md lists the fields. Lines are in any order; the trace is sorted by submit time, then by
// line. Empty lines and lines that begin with # are passed over.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/scheduler/schedule.h"

namespace longspan::simulator {

struct TraceJob {
  JobId id;
  absl::Duration submit;             // after the beginning of the trace
  std::vector<int64_t> sizes = {1};  // numbers of slots that it can run with, ascending
  absl::Duration run_time;           // until it ends, at its largest size, if nothing stops it
  // What its progress says that it will take, at its largest size: longer than run_time for a job that fails or is
  // cancelled on the way.
  absl::Duration planned_run_time;
  absl::Duration limit = absl::InfiniteDuration();  // it is ended after so long
  std::string queue = "default";
  int64_t priority = 50;
  std::string user;  // for people; no policy asks
  scheduler::Requirements requirements;

  int64_t LargestSize() const { return sizes.back(); }
};

// `name` is for messages. The error names the line, what is wrong with it and what would be right; the first 20 bad
// lines are told.
absl::StatusOr<std::vector<TraceJob>> ReadTrace(std::istream& in, const std::string& name);
absl::StatusOr<std::vector<TraceJob>> ReadTraceFile(const std::string& path);

// The line of a job, without its end. ReadTrace of it gives the job again.
std::string TraceLine(const TraceJob& job);

}  // namespace longspan::simulator
