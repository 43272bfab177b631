// The check of an UpdateJob. Pure, thread-safe.
#pragma once

#include <grpcpp/support/status.h>

#include "longspan/v1/training_service.pb.h"
#include "server/core/events.h"

namespace longspan::rpc {

struct CheckedUpdate {
  grpc::Status status;          // INVALID_ARGUMENT with every wrong field
  core::UpdateRequested event;  // without the job's id, which is to be resolved
};
CheckedUpdate CheckUpdate(const v1::UpdateJobRequest& request);

}  // namespace longspan::rpc
