#include "server/rpc/watch_stream.h"

#include <fmt/format.h>

#include <atomic>
#include <optional>

#include "server/rpc/messages.h"

namespace longspan::rpc {
namespace {

constexpr int64_t kBatch = 64;

class WatchStream final : public PullStream<v1::WatchJobResponse> {
 public:
  WatchStream(const ServerParts& parts, grpc::CallbackServerContext* context, const v1::WatchJobRequest& request,
              StreamLimits limits)
      : PullStream(parts, context, limits),
        asked_for_(request.job_id()),
        read_event_(request.after_event()),
        read_progress_(request.after_progress()),
        written_event_(request.after_event()),
        written_progress_(request.after_progress()) {}

 private:
  void Produce() override {
    parts_.coordinator->Query(
        [self = Self<WatchStream>()](absl::StatusOr<const core::Core*> core) { self->Look(std::move(core)); });
  }

  // On the coordinator's thread: takes what memory has. The store is read elsewhere.
  void Look(absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return ProducedError(Error(core.status()));
    if (job_id_.empty()) {
      absl::StatusOr<JobId> job_id = (*core)->ResolveJob(asked_for_);
      if (!job_id.ok()) return ProducedError(Error(job_id.status()));
      job_id_ = *job_id;
      changes_ = parts_.coordinator->wake_ups().Add(job_id_.value(), WeakPoke());
    }
    absl::StatusOr<core::JobView> view = (*core)->ViewJob(job_id_);
    if (!view.ok()) return ProducedError(Error(view.status()));
    InBackground([self = Self<WatchStream>(), view = *std::move(view)] { self->Read(view); });
  }

  void Read(const core::JobView& view) {
    Batch batch;
    if (!std::exchange(began_, true)) *batch.messages.emplace_back().mutable_job() = ToMessage(view);
    const auto events = parts_.store->ReadEvents(job_id_, read_event_, kBatch);
    if (!events.ok()) return ProducedError(Error(events.status()));
    const auto samples = parts_.store->ReadSamples(job_id_, read_progress_, kBatch);
    if (!samples.ok()) return ProducedError(Error(samples.status()));
    for (const core::JobEvent& event : *events) {
      *batch.messages.emplace_back().mutable_event() = ToMessage(event);
      read_event_ = event.sequence;
    }
    for (const core::Sample& sample : *samples) {
      *batch.messages.emplace_back().mutable_progress() = ToMessage(sample);
      read_progress_ = sample.sequence;
    }
    for (; evaluations_ < view.evaluations.size(); ++evaluations_) {
      *batch.messages.emplace_back().mutable_evaluation() = ToMessage(view.evaluations[evaluations_]);
    }
    const bool more = events->size() == kBatch || samples->size() == kBatch;
    batch.next = more ? Next::kMore : Next::kWait;
    if (!more && core::IsTerminal(view.job.state) && read_event_ >= view.job.last_event) {
      *batch.messages.emplace_back().mutable_job() = ToMessage(view);
      batch.next = Next::kEnd;
    }
    Produced(std::move(batch));
  }

  void Written(const v1::WatchJobResponse& message) override {
    if (message.has_event()) written_event_ = message.event().sequence();
    if (message.has_progress()) written_progress_ = message.progress().sequence();
  }

  std::map<std::string, std::string> Cursor() override {
    return {{"after_event", std::to_string(written_event_)}, {"after_progress", std::to_string(written_progress_)}};
  }

  const std::string asked_for_;
  // Touched by one Produce at a time.
  JobId job_id_;
  WakeUps::Subscription changes_;
  bool began_ = false;
  int64_t read_event_;
  int64_t read_progress_;
  size_t evaluations_ = 0;
  // Read by whoever ends the stream.
  std::atomic<int64_t> written_event_;
  std::atomic<int64_t> written_progress_;
};

}  // namespace

grpc::ServerWriteReactor<v1::WatchJobResponse>* StartWatch(const ServerParts& parts,
                                                           grpc::CallbackServerContext* context,
                                                           const v1::WatchJobRequest& request, StreamLimits limits) {
  return WatchStream::Begin(std::make_shared<WatchStream>(parts, context, request, limits));
}

}  // namespace longspan::rpc
