// The one table of how a job may move from state to state. The core CHECKs every move against it; proto/README.md
// prints it (a test compares). A terminal state has no way out.
#pragma once

#include <string>

#include "server/core/states.h"

namespace longspan::core {

struct Transition {
  JobState from;
  JobState to;
  const char* when;
};

inline constexpr Transition kTransitions[] = {
    {JobState::kQueued, JobState::kStarting, "the scheduler placed an attempt"},
    {JobState::kQueued, JobState::kPaused, "the user paused it while it waited"},
    {JobState::kQueued, JobState::kCancelled, "the user cancelled it while it waited"},

    {JobState::kStarting, JobState::kRunning, "every rank of the attempt is up"},
    {JobState::kStarting, JobState::kPreempting, "a job of higher priority needs its slots, or it moves or is resized"},
    {JobState::kStarting, JobState::kRecovering, "the attempt failed and may be retried"},
    {JobState::kStarting, JobState::kPausing, "the user paused it"},
    {JobState::kStarting, JobState::kCancelling, "the user cancelled it"},
    {JobState::kStarting, JobState::kFailed, "the attempt failed for good"},

    {JobState::kRunning, JobState::kQueued, "its data is prepared; the gang waits for slots"},
    {JobState::kRunning, JobState::kPreempting, "a job of higher priority needs its slots, or it moves or is resized"},
    {JobState::kRunning, JobState::kRecovering, "the attempt failed and may be retried"},
    {JobState::kRunning, JobState::kPausing, "the user paused it"},
    {JobState::kRunning, JobState::kCancelling, "the user cancelled it"},
    {JobState::kRunning, JobState::kSucceeded, "every rank ended well"},
    {JobState::kRunning, JobState::kFailed, "the attempt failed for good, or the job ran too long"},

    {JobState::kPreempting, JobState::kQueued, "its ranks have stopped"},
    {JobState::kPreempting, JobState::kPausing, "the user paused it"},
    {JobState::kPreempting, JobState::kCancelling, "the user cancelled it"},
    {JobState::kPreempting, JobState::kSucceeded, "every rank ended well before it was stopped"},
    {JobState::kPreempting, JobState::kFailed, "the attempt failed for good"},

    {JobState::kRecovering, JobState::kStarting, "the scheduler placed the next attempt"},
    {JobState::kRecovering, JobState::kPausing, "the user paused it while old ranks were stopping"},
    {JobState::kRecovering, JobState::kPaused, "the user paused it"},
    {JobState::kRecovering, JobState::kCancelling, "the user cancelled it while old ranks were stopping"},
    {JobState::kRecovering, JobState::kCancelled, "the user cancelled it"},
    {JobState::kRecovering, JobState::kFailed, "a late report showed a cause that is not retried"},

    {JobState::kPausing, JobState::kPaused, "its ranks have stopped"},
    {JobState::kPausing, JobState::kCancelling, "the user cancelled it"},
    {JobState::kPausing, JobState::kSucceeded, "every rank ended well before it was stopped"},
    {JobState::kPausing, JobState::kFailed, "the attempt failed for good"},

    {JobState::kPaused, JobState::kQueued, "the user resumed it"},
    {JobState::kPaused, JobState::kCancelled, "the user cancelled it"},

    {JobState::kCancelling, JobState::kCancelled, "its ranks have stopped"},
};

bool IsAllowed(JobState from, JobState to);

// The table as Markdown, for proto/README.md.
std::string TransitionsAsMarkdown();

}  // namespace longspan::core
