#include "server/core/states.h"

namespace longspan::core {

const char* Name(JobState state) {
  switch (state) {
    case JobState::kQueued:
      return "QUEUED";
    case JobState::kStarting:
      return "STARTING";
    case JobState::kRunning:
      return "RUNNING";
    case JobState::kPreempting:
      return "PREEMPTING";
    case JobState::kRecovering:
      return "RECOVERING";
    case JobState::kPausing:
      return "PAUSING";
    case JobState::kPaused:
      return "PAUSED";
    case JobState::kCancelling:
      return "CANCELLING";
    case JobState::kSucceeded:
      return "SUCCEEDED";
    case JobState::kFailed:
      return "FAILED";
    case JobState::kCancelled:
      return "CANCELLED";
  }
  return "UNKNOWN";
}

const char* Name(Phase phase) {
  switch (phase) {
    case Phase::kUnspecified:
      return "UNSPECIFIED";
    case Phase::kPrepare:
      return "PREPARE";
    case Phase::kTrain:
      return "TRAIN";
    case Phase::kEvaluate:
      return "EVALUATE";
    case Phase::kExport:
      return "EXPORT";
  }
  return "UNKNOWN";
}

const char* Name(FailureClass failure_class) {
  switch (failure_class) {
    case FailureClass::kUnspecified:
      return "UNSPECIFIED";
    case FailureClass::kInfrastructure:
      return "INFRASTRUCTURE";
    case FailureClass::kUser:
      return "USER";
    case FailureClass::kResource:
      return "RESOURCE";
    case FailureClass::kNoProgress:
      return "NO_PROGRESS";
    case FailureClass::kPreempted:
      return "PREEMPTED";
    case FailureClass::kInternal:
      return "INTERNAL";
  }
  return "UNKNOWN";
}

const char* Name(RankState state) {
  switch (state) {
    case RankState::kPending:
      return "PENDING";
    case RankState::kStarting:
      return "STARTING";
    case RankState::kRunning:
      return "RUNNING";
    case RankState::kStopping:
      return "STOPPING";
    case RankState::kExited:
      return "EXITED";
  }
  return "UNKNOWN";
}

bool IsTerminal(JobState state) {
  return state == JobState::kSucceeded || state == JobState::kFailed || state == JobState::kCancelled;
}

bool IsWaiting(JobState state) { return state == JobState::kQueued || state == JobState::kRecovering; }

}  // namespace longspan::core
