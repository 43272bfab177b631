// The words for where a job, an attempt and a rank stand. Their numbers are those of proto/longspan/v1 (a test
// compares), so that the store, the RPC layer and the core agree without the core knowing the generated messages.
#pragma once

#include <cstdint>

namespace longspan::core {

enum class JobState : int {
  kQueued = 1,
  kStarting = 2,
  kRunning = 3,
  kPreempting = 4,
  kRecovering = 5,
  kPausing = 6,
  kPaused = 7,
  kCancelling = 8,
  kSucceeded = 9,
  kFailed = 10,
  kCancelled = 11,
};
inline constexpr JobState kAllJobStates[] = {
    JobState::kQueued,     JobState::kStarting, JobState::kRunning,   JobState::kPreempting,
    JobState::kRecovering, JobState::kPausing,  JobState::kPaused,    JobState::kCancelling,
    JobState::kSucceeded,  JobState::kFailed,   JobState::kCancelled,
};

enum class Phase : int { kUnspecified = 0, kPrepare = 1, kTrain = 2, kEvaluate = 3, kExport = 4 };

enum class FailureClass : int {
  kUnspecified = 0,
  kInfrastructure = 1,
  kUser = 2,
  kResource = 3,
  kNoProgress = 4,
  kPreempted = 5,
  kInternal = 6,
};

// kPending is the server's own: placed, and not heard of yet.
enum class RankState : int { kPending = 0, kStarting = 1, kRunning = 2, kStopping = 3, kExited = 4 };

// "QUEUED", "TRAIN", ...: as in the messages, without their prefix.
const char* Name(JobState state);
const char* Name(Phase phase);
const char* Name(FailureClass failure_class);
const char* Name(RankState state);

bool IsTerminal(JobState state);
// Waits for the scheduler: QUEUED and RECOVERING.
bool IsWaiting(JobState state);

}  // namespace longspan::core
