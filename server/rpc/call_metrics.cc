#include "server/rpc/call_metrics.h"

#include <chrono>
#include <string>

#include "proto/support/hand_over.h"

namespace longspan::rpc {
namespace {

using Hook = grpc::experimental::InterceptionHookPoints;

class CallObserver final : public grpc::experimental::Interceptor {
 public:
  CallObserver(Observer* observer, const char* path)
      : observer_(observer), method_(path), start_(std::chrono::steady_clock::now()) {
    method_.erase(0, method_.rfind('/') + 1);
    HandOver(this);
  }
  // A call that ended without sending a status was cut off.
  ~CallObserver() override {
    TakeOver(this);
    const auto took = std::chrono::steady_clock::now() - start_;
    observer_->CallEnded(method_, NameOf(code_),
                         absl::FromChrono(std::chrono::duration_cast<std::chrono::nanoseconds>(took)));
    HandOver(observer_);
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    TakeOver(this);
    if (methods->QueryInterceptionHookPoint(Hook::PRE_SEND_STATUS)) code_ = methods->GetSendStatus().error_code();
    HandOver(this);
    methods->Proceed();
  }

 private:
  Observer* const observer_;
  std::string method_;
  const std::chrono::steady_clock::time_point start_;
  grpc::StatusCode code_ = grpc::StatusCode::CANCELLED;
};

class Factory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit Factory(Observer* observer) : observer_(observer) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(grpc::experimental::ServerRpcInfo* info) override {
    return new CallObserver(observer_, info->method());
  }

 private:
  Observer* const observer_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> ObserveCalls(Observer* observer) {
  return std::make_unique<Factory>(observer);
}

const char* NameOf(grpc::StatusCode code) {
  constexpr const char* kNames[] = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  const size_t number = static_cast<size_t>(code);
  return number < std::size(kNames) ? kNames[number] : "UNKNOWN";
}

}  // namespace longspan::rpc
