// Queues as clients see and change them. Pure, thread-safe.
#pragma once

#include <grpcpp/support/status.h>

#include "longspan/v1/training_service.pb.h"
#include "server/core/core.h"

namespace longspan::rpc {

v1::Queue ToMessage(const core::QueueView& view);

struct CheckedQueue {
  grpc::Status status;  // INVALID_ARGUMENT with every wrong field
  core::QueueConfigured event;
};
// Only what the update mask names is looked at, beside the name.
CheckedQueue CheckQueue(const v1::UpdateQueueRequest& request);

}  // namespace longspan::rpc
