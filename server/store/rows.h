// Rows of the tables to and from the core's structs. Each Read expects the columns in the order of its select list.
#pragma once

#include <string>

#include "server/core/events.h"
#include "server/store/sqlite.h"

namespace longspan::store {

// The newest samples of a job are all there; of the older ones every tenth, of those ten times as old every hundredth.
inline constexpr int64_t kSamplesWhole = 2000;

absl::Status WriteJob(Database& database, const core::JobWrite& write);
absl::Status WriteWorker(Database& database, const core::Worker& worker);
// With all that hangs on it. A job that is not there is no error.
absl::Status DeleteJob(Database& database, const JobId& job_id);
absl::Status WriteQueue(Database& database, const core::Queue& queue);
absl::Status WriteAttempt(Database& database, const core::AttemptWrite& attempt);
absl::Status WriteEvent(Database& database, const JobId& job_id, const core::JobEvent& event);
absl::Status WriteSample(Database& database, const JobId& job_id, const core::Sample& sample);
absl::Status WriteCheckpoint(Database& database, const JobId& job_id, const core::Checkpoint& checkpoint);
absl::Status WriteEvaluation(Database& database, const JobId& job_id, const core::Evaluation& evaluation);
absl::Status WriteArtifact(Database& database, const JobId& job_id, const core::Artifact& artifact);

// Everything, in the order that core::StoredState asks for.
absl::Status LoadAll(Database& database, core::StoredState& state);

absl::StatusOr<std::vector<core::JobEvent>> ReadEvents(Database& database, const JobId& job_id, int64_t after,
                                                       int64_t limit);
absl::StatusOr<std::vector<core::Sample>> ReadSamples(Database& database, const JobId& job_id, int64_t after,
                                                      int64_t limit);

}  // namespace longspan::store
