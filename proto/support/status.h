// absl::Status and grpc::Status, one made from the other without losing the details that programs read:
// google.rpc.ErrorInfo (a reason) and google.rpc.BadRequest (every wrong field). Within a program they travel as
// payloads of absl::Status, under their type URLs. Pure, thread-safe.
#pragma once

#include <grpcpp/support/status.h>

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace longspan {

struct FieldViolation {
  std::string field;        // path from the request's root, "spec.training.steps"
  std::string description;  // what is wrong and what would be right
};

struct StatusDetails {
  std::string reason;  // stable UPPER_SNAKE_CASE word; empty when the peer gave none
  std::map<std::string, std::string> metadata;
  std::vector<FieldViolation> violations;
};

absl::Status ToAbslStatus(const grpc::Status& status);
grpc::Status ToGrpcStatus(const absl::Status& status);

// Adds details; those of an OK status are dropped.
absl::Status WithDetails(absl::Status status, const StatusDetails& details);
// What a status carries; unreadable details count as none.
StatusDetails DetailsOf(const absl::Status& status);

}  // namespace longspan
