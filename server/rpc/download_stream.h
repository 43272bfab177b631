// DownloadFile: one file of a job's folder, with the hash of what was sent.
#pragma once

#include "longspan/v1/training_service.grpc.pb.h"
#include "server/rpc/pull_stream.h"

namespace longspan::rpc {

grpc::ServerWriteReactor<v1::DownloadFileResponse>* StartDownload(const ServerParts& parts,
                                                                  grpc::CallbackServerContext* context,
                                                                  const v1::DownloadFileRequest& request,
                                                                  StreamLimits limits);

}  // namespace longspan::rpc
