// One unary call that is answered later, from another thread: by an answer, its cancellation or its deadline, whichever
// is first.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/support/server_callback.h>

#include <chrono>
#include <functional>
#include <memory>
#include <utility>

#include "proto/support/hand_over.h"
#include "proto/support/mutex.h"
#include "server/rpc/grpc_error.h"

namespace longspan::rpc {

// Keeps itself alive until gRPC is done with it; others hold it by shared pointer, because an answer may come after the
// end (that is why it is shared: neither side knows which is last). Every path calls Finish exactly once, else Shutdown
// would hang.
template <class Response>
class UnaryCall : public grpc::ServerUnaryReactor, public std::enable_shared_from_this<UnaryCall<Response>> {
 public:
  using Fill = std::function<grpc::Status(Response*)>;

  // Return `get()` of the result from the handler. Without an answer in time the caller gets DEADLINE_EXCEEDED.
  static std::shared_ptr<UnaryCall> Start(Response* response, std::chrono::milliseconds timeout) {
    auto call = std::shared_ptr<UnaryCall>(new UnaryCall(response));
    call->self_ = call;
    HandOver(call.get());
    auto on_alarm = [weak = std::weak_ptr<UnaryCall>(call)](bool expired) {
      TakeOver(&grpc_callbacks);
      if (!expired) return;
      if (const std::shared_ptr<UnaryCall> late = weak.lock()) late->FinishOnce(Late());
    };
    HandOver(&grpc_callbacks);
    call->alarm_.Set(std::chrono::system_clock::now() + timeout, std::move(on_alarm));
    return call;
  }

  // Fills the response and finishes; false, and `fill` is not run, when the call has ended before.
  bool Answer(const Fill& fill) {
    grpc::Status status;
    {
      // The response is gRPC's and goes away after the end, so it is written under the lock that guards the end.
      const MutexLock lock(mutex_);
      if (finished_) return false;
      status = fill(response_);
      finished_ = true;
    }
    HandOver(this);
    this->Finish(status);
    return true;
  }
  bool Fail(const grpc::Status& status) { return FinishOnce(status); }

  bool ended() {
    const MutexLock lock(mutex_);
    return finished_;
  }

 private:
  explicit UnaryCall(Response* response) : response_(response) {}

  static grpc::Status Late() {
    return Error(grpc::StatusCode::DEADLINE_EXCEEDED, "SERVER_SLOW",
                 "the server did not come to an answer in time; it is safe to ask again");
  }

  bool FinishOnce(const grpc::Status& status) {
    {
      const MutexLock lock(mutex_);
      if (finished_) return false;
      finished_ = true;
    }
    HandOver(this);
    this->Finish(status);
    return true;
  }
  void OnCancel() override {
    TakeOver(this);
    FinishOnce(grpc::Status(grpc::StatusCode::CANCELLED, "the call was cancelled"));
  }
  void OnDone() override {
    TakeOver(this);
    alarm_.Cancel();
    const std::shared_ptr<UnaryCall> last = std::move(self_);
  }

  Mutex mutex_;
  Response* const response_;
  bool finished_ GUARDED_BY(mutex_) = false;
  grpc::Alarm alarm_;
  std::shared_ptr<UnaryCall> self_;
};

}  // namespace longspan::rpc
