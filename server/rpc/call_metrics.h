// Tells the observer how every call ended, whichever way it did.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <memory>

#include "server/rpc/observer.h"

namespace longspan::rpc {

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> ObserveCalls(Observer* observer);

// "NOT_FOUND" for grpc::StatusCode::NOT_FOUND.
const char* NameOf(grpc::StatusCode code);

}  // namespace longspan::rpc
