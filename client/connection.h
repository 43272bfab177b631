// A connection to the server: calls with deadlines, the token, retries, and errors as sentences.
#pragma once

#include <grpcpp/client_context.h>

#include <chrono>
#include <memory>
#include <string>

#include "client/client.h"
#include "client/settings.h"
#include "longspan/v1/training_service.grpc.pb.h"

namespace longspan::client {

class Connection {
 public:
  // `environment` must outlive the connection. Throws CommandError for settings that make no sense.
  Connection(const Settings& settings, const Environment& environment);

  // One unary call, retried some times while the server is unreachable: every request of ours may be sent twice. Throws
  // CommandError with the server's words.
  template <class Request, class Response>
  Response Call(grpc::Status (v1::TrainingService::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                const Request& request) const {
    for (int attempt = 1;; ++attempt) {
      grpc::ClientContext context;
      Prepare(&context, kCallDeadline);
      Response response;
      const grpc::Status status = (stub_.get()->*method)(&context, request, &response);
      if (status.ok()) return response;
      if (status.error_code() != grpc::StatusCode::UNAVAILABLE || attempt == kAttemptsMax) Throw(status);
      environment_->sleep(kRetryPause * attempt);
    }
  }

  v1::TrainingService::Stub& stub() const { return *stub_; }
  // Token and deadline of a call made by hand.
  void Prepare(grpc::ClientContext* context, std::chrono::milliseconds deadline) const;
  // CommandError for a failed call.
  [[noreturn]] void Throw(const grpc::Status& status) const;

 private:
  static constexpr std::chrono::milliseconds kCallDeadline = std::chrono::seconds(30);
  static constexpr std::chrono::milliseconds kRetryPause = std::chrono::milliseconds(200);
  static constexpr int kAttemptsMax = 4;

  std::string address_;
  std::string token_;
  const Environment* environment_;
  std::unique_ptr<v1::TrainingService::Stub> stub_;
};

}  // namespace longspan::client
