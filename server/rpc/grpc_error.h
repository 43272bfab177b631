// Errors as clients see them: a canonical code, a sentence, and details that a program can read (google.rpc.ErrorInfo
// and BadRequest). Thread-safe.
#pragma once

#include <grpcpp/support/status.h>

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/support/status.h"

namespace longspan::rpc {

// `reason` is a stable UPPER_SNAKE_CASE word for programs, `metadata` what they need with it.
grpc::Status Error(grpc::StatusCode code, const std::string& reason, const std::string& message,
                   const std::map<std::string, std::string>& metadata = {});

// INVALID_ARGUMENT with every violation; the message quotes them too, for people whose tools show no details.
grpc::Status InvalidFields(const std::string& what, const std::vector<FieldViolation>& violations);

// The same code and message, with a reason made of the code's name.
grpc::Status Error(const absl::Status& status);

}  // namespace longspan::rpc
