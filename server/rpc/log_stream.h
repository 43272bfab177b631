// StreamLogs: the log of one rank of one attempt, and what is added to it.
#pragma once

#include "longspan/v1/training_service.grpc.pb.h"
#include "server/rpc/pull_stream.h"

namespace longspan::rpc {

// Wake-ups of a rank's log, sent by UploadLogs.
std::string LogName(const RankLog& log);

grpc::ServerWriteReactor<v1::StreamLogsResponse>* StartLogStream(const ServerParts& parts,
                                                                 grpc::CallbackServerContext* context,
                                                                 const v1::StreamLogsRequest& request,
                                                                 StreamLimits limits);

}  // namespace longspan::rpc
