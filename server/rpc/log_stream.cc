#include "server/rpc/log_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <optional>

namespace longspan::rpc {
namespace {

constexpr int64_t kChunkBytes = 64 * 1024;

class LogStream final : public PullStream<v1::StreamLogsResponse> {
 public:
  LogStream(const ServerParts& parts, grpc::CallbackServerContext* context, const v1::StreamLogsRequest& request,
            StreamLimits limits)
      : PullStream(parts, context, limits), request_(request), offset_(request.offset()), written_(request.offset()) {}

 private:
  void Produce() override {
    if (known_ && !at_end_) return InBackground([self = Self<LogStream>()] { self->Read(); });
    parts_.coordinator->Query(
        [self = Self<LogStream>()](absl::StatusOr<const core::Core*> core) { self->Look(std::move(core)); });
  }

  // On the coordinator's thread: which attempt, and whether it lives.
  void Look(absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return ProducedError(Error(core.status()));
    if (job_id_.empty()) {
      absl::StatusOr<JobId> job_id = (*core)->ResolveJob(request_.job_id());
      if (!job_id.ok()) return ProducedError(Error(job_id.status()));
      job_id_ = *job_id;
      job_changes_ = parts_.coordinator->wake_ups().Add(job_id_.value(), WeakPoke());
    }
    const absl::StatusOr<core::JobView> view = (*core)->ViewJob(job_id_);
    if (!view.ok()) return ProducedError(Error(view.status()));
    if (log_.attempt == 0 && !Choose(*view)) return;
    attempt_ended_ = HasEnded(*view);
    InBackground([self = Self<LogStream>()] { self->Read(); });
  }

  // Settles attempt and rank; false when the answer is given instead.
  bool Choose(const core::JobView& view) {
    const int64_t attempt = request_.attempt() == 0 ? view.job.attempt : request_.attempt();
    if (attempt == 0 && request_.follow() && !core::IsTerminal(view.job.state)) {
      Batch wait;
      wait.next = Next::kWait;
      Produced(std::move(wait));
      return false;
    }
    if (attempt < 1 || attempt > view.job.attempt) {
      ProducedError(Error(grpc::StatusCode::NOT_FOUND, "ATTEMPT_NOT_FOUND",
                          fmt::format("{} has no attempt {}; its newest is {}", job_id_, attempt, view.job.attempt)));
      return false;
    }
    const core::Attempt* found = FindAttempt(view, attempt);
    if (request_.rank() < 0 || (found != nullptr && request_.rank() >= static_cast<int64_t>(found->ranks.size()))) {
      ProducedError(Error(grpc::StatusCode::NOT_FOUND, "RANK_NOT_FOUND",
                          fmt::format("attempt {} of {} has no rank {}", attempt, job_id_, request_.rank())));
      return false;
    }
    log_ = {job_id_.value(), attempt, request_.rank()};
    known_ = true;
    log_changes_ = parts_.log_wake_ups->Add(LogName(log_), WeakPoke());
    return true;
  }

  static const core::Attempt* FindAttempt(const core::JobView& view, int64_t number) {
    const auto found = std::find_if(view.attempts.begin(), view.attempts.end(),
                                    [&](const core::Attempt& attempt) { return attempt.number == number; });
    return found == view.attempts.end() ? nullptr : &*found;
  }

  bool HasEnded(const core::JobView& view) const {
    if (log_.attempt < view.job.attempt || core::IsTerminal(view.job.state)) return true;
    const core::Attempt* attempt = FindAttempt(view, log_.attempt);
    return attempt == nullptr || attempt->end_time != core::kNever;
  }

  void Read() {
    absl::StatusOr<std::string> data = parts_.logs->Read(log_, offset_, kChunkBytes);
    if (!data.ok()) return ProducedError(Error(data.status()));
    Batch batch;
    if (!data->empty()) {
      offset_ += static_cast<int64_t>(data->size());
      v1::StreamLogsResponse& message = batch.messages.emplace_back();
      message.set_data(*std::move(data));
      message.set_next_offset(offset_);
      at_end_ = false;
      lingered_ = false;
      batch.next = Next::kMore;
      return Produced(std::move(batch));
    }
    at_end_ = true;  // asks after the attempt next time, and reads again
    batch.next = request_.follow() ? WhatAtTheEnd() : Next::kEnd;
    Produced(std::move(batch));
  }

  // The daemon sends the last lines of a rank after its end, so the end of the attempt is not yet the end of its log.
  Next WhatAtTheEnd() {
    if (!attempt_ended_) return Next::kWait;
    if (lingered_ && Coordinator::Clock::now() >= linger_until_) return Next::kEnd;
    if (!std::exchange(lingered_, true)) {
      linger_until_ = Coordinator::Clock::now() + limits_.log_linger;
      parts_.coordinator->RunAt(linger_until_, WeakPoke());
    }
    return Next::kWait;
  }

  void Written(const v1::StreamLogsResponse& message) override { written_ = message.next_offset(); }
  std::map<std::string, std::string> Cursor() override { return {{"offset", std::to_string(written_)}}; }

  const v1::StreamLogsRequest request_;
  // Touched by one Produce at a time.
  JobId job_id_;
  RankLog log_;
  bool known_ = false;
  bool at_end_ = false;
  bool attempt_ended_ = false;
  bool lingered_ = false;
  Coordinator::Clock::time_point linger_until_;
  int64_t offset_;
  WakeUps::Subscription job_changes_;
  WakeUps::Subscription log_changes_;
  std::atomic<int64_t> written_;  // read by whoever ends the stream
};

}  // namespace

std::string LogName(const RankLog& log) { return fmt::format("{}/{}/{}", log.job_id, log.attempt, log.rank); }

grpc::ServerWriteReactor<v1::StreamLogsResponse>* StartLogStream(const ServerParts& parts,
                                                                 grpc::CallbackServerContext* context,
                                                                 const v1::StreamLogsRequest& request,
                                                                 StreamLimits limits) {
  return LogStream::Begin(std::make_shared<LogStream>(parts, context, request, limits));
}

}  // namespace longspan::rpc
