// A server stream that makes its messages when the one before has left, so that a slow reader holds one small batch and
// never a queue: the bound of each stream is the batch.
//
// A subclass says what comes next (Produce) and is poked when there may be more. A reader that takes nothing for
// `stall_limit` while a message waits is sent away with RESOURCE_EXHAUSTED and the cursor to resume from; if it does
// not even take that, the connection's stream is cancelled. Keeps itself alive until gRPC is done with it; callbacks
// hold it weakly.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "proto/support/hand_over.h"
#include "proto/support/mutex.h"
#include "server/rpc/grpc_error.h"
#include "server/rpc/server_parts.h"

namespace longspan::rpc {

struct StreamLimits {
  std::chrono::milliseconds stall_limit = std::chrono::seconds(30);     // a message waits that long for its reader
  std::chrono::milliseconds farewell_limit = std::chrono::seconds(30);  // and then the farewell that long
  std::chrono::milliseconds log_linger = std::chrono::seconds(3);       // a log may still come after its attempt's end
};

template <class Response>
class PullStream : public grpc::ServerWriteReactor<Response>,
                   public std::enable_shared_from_this<PullStream<Response>> {
 public:
  enum class Next { kMore, kWait, kEnd };
  struct Batch {
    std::deque<Response> messages;
    Next next = Next::kEnd;
    grpc::Status status;  // with kEnd
  };

  PullStream(const ServerParts& parts, grpc::CallbackServerContext* context, StreamLimits limits)
      : parts_(parts), limits_(limits), context_(context) {}

  // Called once, by the factory; the stream then belongs to gRPC.
  static grpc::ServerWriteReactor<Response>* Begin(std::shared_ptr<PullStream> stream) {
    PullStream* raw = stream.get();
    raw->self_ = stream;
    raw->closing_ = raw->parts_.closing->Add(kClosing, [weak = std::weak_ptr<PullStream>(stream)] {
      if (const auto open = weak.lock()) {
        open->FinishOnce(open->Ended(grpc::StatusCode::UNAVAILABLE, "SERVER_STOPS",
                                     "the server is shutting down; resume with the cursor"));
      }
    });
    HandOver(raw);
    raw->Produce();
    return raw;
  }

 protected:
  // Makes the next batch, then calls Produced, now or later, from any thread. Never runs twice at a time.
  virtual void Produce() = 0;
  // A message was handed to the connection.
  virtual void Written(const Response& message) {}
  // Where to go on, for the error of a stream that ends early.
  virtual std::map<std::string, std::string> Cursor() { return {}; }

  void Produced(Batch batch) {
    {
      const MutexLock lock(mutex_);
      if (finished_) return;
      batch_ = std::move(batch);
    }
    Advance();
  }
  void ProducedError(const grpc::Status& status) {
    Batch batch;
    batch.status = status;
    Produced(std::move(batch));
  }
  // There may be more: look again.
  void Poke() {
    {
      const MutexLock lock(mutex_);
      poked_ = true;
      if (finished_ || !waiting_) return;
      waiting_ = false;
      poked_ = false;
    }
    Produce();
  }
  // Runs `work` on a background thread; ends the stream when they are overloaded.
  void InBackground(std::function<void()> work) {
    if (parts_.background->Run(std::move(work))) return;
    ProducedError(Ended(grpc::StatusCode::RESOURCE_EXHAUSTED, "SERVER_OVERLOADED",
                        "the server is overloaded; resume with the cursor"));
  }
  grpc::Status Ended(grpc::StatusCode code, const std::string& reason, const std::string& message) {
    return Error(code, reason, message, Cursor());
  }
  template <class Stream>
  std::shared_ptr<Stream> Self() {
    return std::static_pointer_cast<Stream>(this->shared_from_this());
  }
  // For wake-ups and timers.
  std::function<void()> WeakPoke() {
    return [weak = std::weak_ptr<PullStream>(this->shared_from_this())] {
      if (const auto open = weak.lock()) open->Poke();
    };
  }

  const ServerParts parts_;
  const StreamLimits limits_;

 private:
  using Clock = Coordinator::Clock;

  // Does what the batch asks for next: write, produce, wait or end.
  void Advance() {
    const Response* message = nullptr;
    bool arm = false;
    bool end = false;
    grpc::Status status;
    {
      const MutexLock lock(mutex_);
      if (finished_) return;
      if (!batch_.messages.empty()) {
        message = &batch_.messages.front();
        writing_ = true;
        write_start_ = Clock::now();
        arm = !std::exchange(stall_timer_armed_, true);
      } else if (batch_.next == Next::kEnd) {
        end = true;
        status = batch_.status;
      } else if (batch_.next == Next::kWait && !std::exchange(poked_, false)) {
        waiting_ = true;
        return;
      }
    }
    if (end) {
      FinishOnce(status);
    } else if (message != nullptr) {
      if (arm) ArmStallTimer(Clock::now() + limits_.stall_limit);
      HandOver(this);
      this->StartWrite(message);
    } else {
      Produce();
    }
  }

  void OnWriteDone(bool ok) override {
    TakeOver(this);
    if (!ok) return FinishOnce(grpc::Status(grpc::StatusCode::CANCELLED, "the reader is gone"));
    {
      const MutexLock lock(mutex_);
      writing_ = false;
      if (finished_) return;
    }
    Written(batch_.messages.front());
    {
      const MutexLock lock(mutex_);
      batch_.messages.pop_front();
    }
    Advance();
  }

  void ArmStallTimer(Clock::time_point time) {
    parts_.coordinator->RunAt(time, [weak = std::weak_ptr<PullStream>(this->shared_from_this())] {
      if (const auto open = weak.lock()) open->CheckStall();
    });
  }

  void CheckStall() {
    const Clock::time_point now = Clock::now();
    Clock::time_point again = now + limits_.stall_limit;
    bool stalled = false;
    {
      const MutexLock lock(mutex_);
      if (done_) return;
      if (finished_) {
        if (!writing_) return;
        context_->TryCancel();  // it was told, and did not even take that
        return;
      }
      if (!writing_) {
        stall_timer_armed_ = false;
        return;
      }
      stalled = now - write_start_ >= limits_.stall_limit;
      if (!stalled) again = write_start_ + limits_.stall_limit;
    }
    if (stalled) {
      again = now + limits_.farewell_limit;
      FinishOnce(Ended(grpc::StatusCode::RESOURCE_EXHAUSTED, "READER_TOO_SLOW",
                       "the reader took nothing for too long; resume with the cursor"));
    }
    ArmStallTimer(again);
  }

  void FinishOnce(const grpc::Status& status) {
    {
      const MutexLock lock(mutex_);
      if (std::exchange(finished_, true)) return;
    }
    HandOver(this);
    this->Finish(status);
  }
  void OnCancel() override {
    TakeOver(this);
    FinishOnce(grpc::Status(grpc::StatusCode::CANCELLED, "the call was cancelled"));
  }
  void OnDone() override {
    TakeOver(this);
    {
      const MutexLock lock(mutex_);
      done_ = true;
    }
    closing_ = WakeUps::Subscription();
    const std::shared_ptr<PullStream> last = std::move(self_);
  }

  grpc::CallbackServerContext* const context_;
  Mutex mutex_;
  Batch batch_;  // guarded by mutex_, save that the message being written stays where it is
  bool finished_ GUARDED_BY(mutex_) = false;
  bool done_ GUARDED_BY(mutex_) = false;
  bool waiting_ GUARDED_BY(mutex_) = false;
  bool poked_ GUARDED_BY(mutex_) = false;
  bool writing_ GUARDED_BY(mutex_) = false;
  bool stall_timer_armed_ GUARDED_BY(mutex_) = false;
  Clock::time_point write_start_ GUARDED_BY(mutex_);
  WakeUps::Subscription closing_;
  std::shared_ptr<PullStream> self_;
};

}  // namespace longspan::rpc
