#include "server/rpc/log_upload.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "proto/support/hand_over.h"
#include "proto/support/mutex.h"
#include "server/rpc/grpc_error.h"
#include "server/rpc/log_stream.h"

namespace longspan::rpc {
namespace {

constexpr size_t kDataBytesMax = 256 * 1024;

// Reads one message, stores it on a background thread, reads the next: the bound is one message per stream, and a slow
// disk slows the daemon down, never the trainer.
class LogUpload final : public grpc::ServerReadReactor<v1::UploadLogsRequest>,
                        public std::enable_shared_from_this<LogUpload> {
 public:
  LogUpload(const ServerParts& parts, v1::UploadLogsResponse* response) : parts_(parts), response_(response) {}

  static LogUpload* Begin(std::shared_ptr<LogUpload> upload, const grpc::Status& allowed) {
    LogUpload* raw = upload.get();
    raw->self_ = upload;
    if (!allowed.ok()) {
      raw->FinishOnce(allowed);
    } else {
      raw->ReadNext();
    }
    return raw;
  }

 private:
  void ReadNext() {
    HandOver(this);
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    TakeOver(this);
    if (!ok) return FinishOnce(grpc::Status::OK);  // the daemon has said all, or is gone
    if (message_.data().size() > kDataBytesMax) {
      return FinishOnce(
          Error(grpc::StatusCode::INVALID_ARGUMENT, "DATA_TOO_LONG",
                fmt::format("data has {} bytes, the limit is {}", message_.data().size(), kDataBytesMax)));
    }
    if (message_.offset() < 0) {
      return FinishOnce(Error(grpc::StatusCode::INVALID_ARGUMENT, "OFFSET_INVALID", "offset is negative"));
    }
    const RankLog named{message_.job_id(), message_.attempt(), message_.rank()};
    if (LogName(named) == LogName(log_) && message_.worker_id() == worker_id_) return StoreInBackground();
    parts_.coordinator->Query([self = shared_from_this(), named](absl::StatusOr<const core::Core*> core) {
      if (!core.ok()) return self->FinishOnce(Error(core.status()));
      const grpc::Status status = self->CheckRank(**core, named);
      if (!status.ok()) return self->FinishOnce(status);
      self->log_ = named;
      self->worker_id_ = self->message_.worker_id();
      self->StoreInBackground();
    });
  }

  // Only the worker that runs, or ran, a rank may write its log.
  grpc::Status CheckRank(const core::Core& core, const RankLog& log) const {
    const absl::StatusOr<core::JobView> view = core.ViewJob(JobId(log.job_id));
    if (!view.ok()) return Error(view.status());
    if (log.attempt < 1 || log.attempt > view->job.attempt) {
      return Error(grpc::StatusCode::NOT_FOUND, "ATTEMPT_NOT_FOUND",
                   fmt::format("{} has no attempt {}", log.job_id, log.attempt));
    }
    const auto attempt = std::find_if(view->attempts.begin(), view->attempts.end(),
                                      [&](const core::Attempt& each) { return each.number == log.attempt; });
    if (attempt == view->attempts.end()) {
      return Error(grpc::StatusCode::FAILED_PRECONDITION, "ATTEMPT_TOO_OLD",
                   fmt::format("attempt {} of {} is too old to be written to", log.attempt, log.job_id));
    }
    const auto rank = std::find_if(attempt->ranks.begin(), attempt->ranks.end(),
                                   [&](const core::Rank& each) { return each.rank == log.rank; });
    if (rank == attempt->ranks.end() || rank->worker_id.value() != message_.worker_id()) {
      return Error(grpc::StatusCode::FAILED_PRECONDITION, "RANK_NOT_YOURS",
                   fmt::format("worker {} does not run rank {} of attempt {} of {}", message_.worker_id(), log.rank,
                               log.attempt, log.job_id));
    }
    return grpc::Status::OK;
  }

  void StoreInBackground() {
    if (parts_.background->Run([self = shared_from_this()] { self->Store(); })) return;
    FinishOnce(
        Error(grpc::StatusCode::RESOURCE_EXHAUSTED, "SERVER_OVERLOADED", "the server is overloaded, try again later"));
  }

  void Store() {
    const absl::StatusOr<int64_t> stored = parts_.logs->Append(log_, message_.offset(), message_.data());
    if (!stored.ok()) return FinishOnce(Error(stored.status()));
    {
      const MutexLock lock(mutex_);
      if (finished_) return;
      response_->set_stored_bytes(*stored);
    }
    parts_.log_wake_ups->Wake(LogName(log_));
    if (*stored < message_.offset()) return FinishOnce(grpc::Status::OK);
    ReadNext();
  }

  void FinishOnce(const grpc::Status& status) {
    {
      const MutexLock lock(mutex_);
      if (std::exchange(finished_, true)) return;
    }
    HandOver(this);
    Finish(status);
  }
  void OnCancel() override {
    TakeOver(this);
    FinishOnce(grpc::Status(grpc::StatusCode::CANCELLED, "the call was cancelled"));
  }
  void OnDone() override {
    TakeOver(this);
    const std::shared_ptr<LogUpload> last = std::move(self_);
  }

  const ServerParts parts_;
  v1::UploadLogsRequest message_;  // the one at hand; gRPC writes it between StartRead and OnReadDone
  RankLog log_;
  std::string worker_id_;
  Mutex mutex_;
  v1::UploadLogsResponse* const response_;  // gRPC's, until the end
  bool finished_ GUARDED_BY(mutex_) = false;
  std::shared_ptr<LogUpload> self_;
};

}  // namespace

grpc::ServerReadReactor<v1::UploadLogsRequest>* StartLogUpload(const ServerParts& parts, const grpc::Status& allowed,
                                                               v1::UploadLogsResponse* response) {
  return LogUpload::Begin(std::make_shared<LogUpload>(parts, response), allowed);
}

}  // namespace longspan::rpc
