#include "server/rpc/grpc_error.h"

#include <fmt/format.h>

#include "proto/support/first_bytes.h"

namespace longspan::rpc {
namespace {

// grpc refuses trailing metadata of more than 8 KiB or so; the message, twice, and the details share it.
constexpr size_t kTextBytesMax = 2 * 1024;
constexpr size_t kDetailBytesMax = 2 * 1024;

}  // namespace

grpc::Status Error(grpc::StatusCode code, const std::string& reason, const std::string& message,
                   const std::map<std::string, std::string>& metadata) {
  StatusDetails details;
  details.reason = reason;
  details.metadata = metadata;
  const absl::Status status(static_cast<absl::StatusCode>(code), FirstBytes(message, kTextBytesMax));
  return ToGrpcStatus(WithDetails(status, details));
}

grpc::Status InvalidFields(const std::string& what, const std::vector<FieldViolation>& violations) {
  StatusDetails details;
  details.reason = "INVALID_FIELDS";
  std::string message = what;
  size_t bytes = 0;
  for (const FieldViolation& violation : violations) {
    bytes += violation.field.size() + violation.description.size() + 8;
    if (bytes > kDetailBytesMax) break;
    details.violations.push_back(violation);
    message +=
        fmt::format("\n  {}: {}", violation.field.empty() ? "(request)" : violation.field, violation.description);
  }
  const size_t left_out = violations.size() - details.violations.size();
  if (left_out > 0) message += fmt::format("\n  and {} more", left_out);
  return ToGrpcStatus(WithDetails(absl::InvalidArgumentError(FirstBytes(message, kTextBytesMax)), details));
}

grpc::Status Error(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message(status.message().data(), status.message().size());
  return Error(static_cast<grpc::StatusCode>(status.code()), absl::StatusCodeToString(status.code()), message);
}

}  // namespace longspan::rpc
