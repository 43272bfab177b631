// UploadLogs: log bytes of ranks from their daemon into the log store.
#pragma once

#include "longspan/v1/fleet_service.grpc.pb.h"
#include "server/rpc/server_parts.h"

namespace longspan::rpc {

// `allowed` other than OK ends the stream at once. The stream also ends, with OK and what is stored, when a message
// begins behind the end of what is stored: the daemon then resends from there.
grpc::ServerReadReactor<v1::UploadLogsRequest>* StartLogUpload(const ServerParts& parts, const grpc::Status& allowed,
                                                               v1::UploadLogsResponse* response);

}  // namespace longspan::rpc
