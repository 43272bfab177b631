// WatchJob: events, progress and evaluations of one job as they come.
#pragma once

#include "longspan/v1/training_service.grpc.pb.h"
#include "server/rpc/pull_stream.h"

namespace longspan::rpc {

grpc::ServerWriteReactor<v1::WatchJobResponse>* StartWatch(const ServerParts& parts,
                                                           grpc::CallbackServerContext* context,
                                                           const v1::WatchJobRequest& request, StreamLimits limits);

}  // namespace longspan::rpc
