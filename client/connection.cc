#include "client/connection.h"

#include <fmt/format.h>

#include "client/command.h"
#include "proto/support/channel.h"
#include "proto/support/status.h"

namespace longspan::client {
namespace {

ExitCode ExitCodeOf(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::PERMISSION_DENIED:
      return kExitConnection;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return kExitTimeout;
    case grpc::StatusCode::CANCELLED:
      return kExitCancelled;
    case grpc::StatusCode::NOT_FOUND:
    case grpc::StatusCode::ALREADY_EXISTS:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::OUT_OF_RANGE:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::UNIMPLEMENTED:
      return kExitRefused;
    default:
      return kExitFailed;
  }
}

std::string SentenceFor(const grpc::Status& status, const std::string& address) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return fmt::format("cannot reach the server at {}: {}", address, status.error_message());
    case grpc::StatusCode::UNAUTHENTICATED:
      return fmt::format("the server at {} wants a valid token (--token-file, LONGSPAN_TOKEN): {}", address,
                         status.error_message());
    case grpc::StatusCode::PERMISSION_DENIED:
      return fmt::format("not allowed: {}", status.error_message());
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return fmt::format("the server at {} did not answer in time", address);
    case grpc::StatusCode::UNIMPLEMENTED:
      return fmt::format("this server cannot do that yet: {}", status.error_message());
    default:
      return status.error_message().empty()
                 ? fmt::format("the server failed with code {}", static_cast<int>(status.error_code()))
                 : status.error_message();
  }
}

}  // namespace

Connection::Connection(const Settings& settings, const Environment& environment)
    : address_(settings.address), token_(settings.token), environment_(&environment) {
  const auto channel = OpenChannel(ToChannelOptions(settings));
  if (!channel.ok()) throw CommandError(kExitUsage, std::string(channel.status().message()));
  stub_ = v1::TrainingService::NewStub(*channel);
}

void Connection::Prepare(grpc::ClientContext* context, std::chrono::milliseconds deadline) const {
  Authorize(token_, context);
  context->set_deadline(std::chrono::system_clock::now() + deadline);
}

void Connection::Throw(const grpc::Status& status) const {
  std::string message = SentenceFor(status, address_);
  // The fields are in the details; a server may have named them in its message too.
  for (const FieldViolation& violation : DetailsOf(ToAbslStatus(status)).violations) {
    if (message.find(violation.description) == std::string::npos) {
      message += fmt::format("\n  {}: {}", violation.field, violation.description);
    }
  }
  throw CommandError(ExitCodeOf(status.error_code()), message);
}

}  // namespace longspan::client
