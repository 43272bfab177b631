// Rows of the core as messages, and reports of workers as events. Pure, thread-safe.
#pragma once

#include "absl/status/statusor.h"
#include "longspan/v1/fleet_service.pb.h"
#include "longspan/v1/job.pb.h"
#include "server/core/core.h"

namespace longspan::rpc {

v1::Job ToMessage(const core::JobView& view);
v1::JobEvent ToMessage(const core::JobEvent& event);
v1::ProgressSample ToMessage(const core::Sample& sample);
v1::CheckpointRecord ToMessage(const core::Checkpoint& checkpoint);
v1::EvaluationRow ToMessage(const core::Evaluation& evaluation);
v1::Worker ToMessage(const core::WorkerView& view);
v1::DesiredRank ToMessage(const core::DesiredRank& rank);
v1::RankAcknowledgement ToMessage(const core::RankAcknowledgement& acknowledgement);

// INVALID_ARGUMENT for a report without ids or with more than a daemon can honestly have.
absl::StatusOr<core::WorkerReport> FromMessage(const v1::SynchronizeRequest& request);

}  // namespace longspan::rpc
