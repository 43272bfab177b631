#include "server/rpc/fleet_service.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "proto/support/brings_news.h"
#include "server/rpc/log_upload.h"
#include "server/rpc/messages.h"

namespace longspan::rpc {
namespace {

bool HasFenced(const core::ReportReply& reply) {
  return std::any_of(reply.acknowledged.begin(), reply.acknowledged.end(),
                     [](const core::RankAcknowledgement& acknowledgement) { return acknowledgement.fenced; });
}

void SetDuration(std::chrono::nanoseconds duration, google::protobuf::Duration* message) {
  message->set_seconds(duration.count() / 1'000'000'000);
  message->set_nanos(static_cast<int32_t>(duration.count() % 1'000'000'000));
}

}  // namespace

FleetServiceImpl::FleetServiceImpl(const ServerParts& parts, FleetServiceOptions options)
    : parts_(parts), options_(options) {}

grpc::ServerUnaryReactor* FleetServiceImpl::Synchronize(grpc::CallbackServerContext* context,
                                                        const v1::SynchronizeRequest* request,
                                                        v1::SynchronizeResponse* response) {
  const std::shared_ptr<Call> call = Call::Start(response, options_.answer_timeout);
  if (const grpc::Status status = options_.token.Check(*context); !status.ok()) {
    call->Fail(status);
    return call.get();
  }
  absl::StatusOr<core::WorkerReport> report = FromMessage(*request);
  if (!report.ok()) {
    call->Fail(Error(report.status()));
    return call.get();
  }
  EndHeld(report->worker_id, 0);
  const ActedOn acted_on = ActedOnOf(*request);
  const bool brings_news = BringsNews(*request);
  parts_.coordinator->Send(*std::move(report), [this, call, acted_on, brings_news](absl::StatusOr<core::Reply> reply,
                                                                                   const core::Core* core) {
    if (!reply.ok()) return (void)call->Fail(Error(reply.status()));
    const auto& report_reply = std::get<core::ReportReply>(*reply);
    if (!report_reply.status.ok()) return (void)call->Fail(Error(report_reply.status));
    Reported(call, acted_on, brings_news, report_reply, *core);
  });
  return call.get();
}

void FleetServiceImpl::Reported(const std::shared_ptr<Call>& call, const ActedOn& acted_on, bool brings_news,
                                const core::ReportReply& reply, const core::Core& core) {
  v1::SynchronizeResponse answer;
  for (const core::RankAcknowledgement& acknowledgement : reply.acknowledged) {
    *answer.add_acknowledged() = ToMessage(acknowledgement);
  }
  SetDuration(absl::ToChronoNanoseconds(parts_.coordinator->options().core.lease), answer.mutable_lease());
  if (!reply.greeting.empty()) {
    answer.set_desired_fingerprint(reply.greeting);
    return Send(call, std::move(answer));
  }
  const bool fenced = HasFenced(reply);
  if (fenced) SetDuration(options_.call_again_fenced, answer.mutable_call_again());
  if (!brings_news && !fenced && IsUpToDate(core, acted_on)) return Hold(call, acted_on, std::move(answer));
  SetDesired(core, acted_on, &answer);
  Send(call, std::move(answer));
}

void FleetServiceImpl::Send(const std::shared_ptr<Call>& call, v1::SynchronizeResponse answer) {
  call->Answer([&](v1::SynchronizeResponse* response) {
    *response = std::move(answer);
    return grpc::Status::OK;
  });
}

std::chrono::milliseconds FleetServiceImpl::HoldTime() const {
  const absl::Duration quarter_lease = parts_.coordinator->options().core.lease / 4;
  return std::min(options_.hold, absl::ToChronoMilliseconds(quarter_lease));
}

void FleetServiceImpl::Hold(const std::shared_ptr<Call>& call, const ActedOn& acted_on,
                            v1::SynchronizeResponse answer) {
  const WorkerId& worker_id = acted_on.worker_id;
  EndHeld(worker_id, 0);  // calls that arrived together: the later report wins
  uint64_t number = 0;
  bool closed = false;
  {
    const MutexLock lock(mutex_);
    closed = closed_;
    number = ++last_number_;
    Held held;
    held.call = call;
    held.number = number;
    held.acted_on = acted_on;
    held.answer = std::move(answer);
    held_[worker_id] = std::move(held);
  }
  if (closed) return EndHeld(worker_id, number);
  // A change between the look at the core and here cannot be: both run on the coordinator's thread, as do the wake-ups.
  WakeUps::Subscription changes = parts_.coordinator->wake_ups().Add(
      Coordinator::WorkerName(worker_id), [this, worker_id, number] { EndHeldIfChanged(worker_id, number); });
  {
    const MutexLock lock(mutex_);
    const auto found = held_.find(worker_id);
    if (found != held_.end() && found->second.number == number) found->second.changes = std::move(changes);
  }
  parts_.coordinator->RunAt(Coordinator::Clock::now() + HoldTime(),
                            [this, worker_id, number] { EndHeld(worker_id, number); });
}

void FleetServiceImpl::EndHeldIfChanged(const WorkerId& worker_id, uint64_t number) {
  parts_.coordinator->Query([this, worker_id, number](absl::StatusOr<const core::Core*> core) {
    if (core.ok()) {
      const MutexLock lock(mutex_);
      const auto found = held_.find(worker_id);
      if (found == held_.end() || found->second.number != number) return;
      if (IsUpToDate(**core, found->second.acted_on)) return;
    }
    EndHeld(worker_id, number);
  });
}

void FleetServiceImpl::EndHeld(const WorkerId& worker_id, uint64_t number) {
  Held held;
  {
    const MutexLock lock(mutex_);
    const auto found = held_.find(worker_id);
    if (found == held_.end() || (number != 0 && found->second.number != number)) return;
    held = std::move(found->second);
    held_.erase(found);
  }
  parts_.coordinator->Query([this, call = held.call, acted_on = held.acted_on,
                             answer = std::move(held.answer)](absl::StatusOr<const core::Core*> core) mutable {
    if (!core.ok()) return (void)call->Fail(Error(core.status()));
    SetDesired(**core, acted_on, &answer);
    Send(call, std::move(answer));
  });
}

grpc::ServerReadReactor<v1::UploadLogsRequest>* FleetServiceImpl::UploadLogs(grpc::CallbackServerContext* context,
                                                                             v1::UploadLogsResponse* response) {
  return StartLogUpload(parts_, options_.token.Check(*context), response);
}

void FleetServiceImpl::Close() {
  std::vector<WorkerId> workers;
  {
    const MutexLock lock(mutex_);
    closed_ = true;
    for (const auto& [worker_id, held] : held_) workers.push_back(worker_id);
  }
  for (const WorkerId& worker_id : workers) EndHeld(worker_id, 0);
}

size_t FleetServiceImpl::held_calls() {
  const MutexLock lock(mutex_);
  return held_.size();
}

}  // namespace longspan::rpc
