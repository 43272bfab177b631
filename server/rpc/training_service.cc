#include "server/rpc/training_service.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "proto/support/hand_over.h"
#include "server/rpc/download_stream.h"
#include "server/rpc/job_folder.h"
#include "server/rpc/job_list_page.h"
#include "server/rpc/log_stream.h"
#include "server/rpc/messages.h"
#include "server/rpc/plan_job.h"
#include "server/rpc/queue_messages.h"
#include "server/rpc/submit.h"
#include "server/rpc/update_job.h"
#include "server/rpc/watch_stream.h"

namespace longspan::rpc {
namespace {

// A stream that is refused before it begins.
template <class Response>
class RefusedWriter final : public grpc::ServerWriteReactor<Response> {
 public:
  explicit RefusedWriter(const grpc::Status& status) {
    this->Finish(status);  // not gRPC's before it is returned
    HandOver(this);
  }
  void OnDone() override {
    TakeOver(this);
    delete this;
  }
};
template <class Request>
class RefusedReader final : public grpc::ServerReadReactor<Request> {
 public:
  explicit RefusedReader(const grpc::Status& status) {
    this->Finish(status);  // not gRPC's before it is returned
    HandOver(this);
  }
  void OnDone() override {
    TakeOver(this);
    delete this;
  }
};

grpc::Status NotYetStatus(const char* method) {
  return Error(grpc::StatusCode::UNIMPLEMENTED, "NOT_YET",
               fmt::format("{} is declared, but this version of the server does not have it yet", method));
}

// A full queue has a reason of its own: that the server itself is overloaded says RESOURCE_EXHAUSTED too.
grpc::Status SubmitError(const absl::Status& status, const std::string& queue) {
  if (status.code() != absl::StatusCode::kResourceExhausted) return Error(status);
  const std::string message(status.message().data(), status.message().size());
  return Error(grpc::StatusCode::RESOURCE_EXHAUSTED, "QUEUE_FULL", message, {{"queue", queue}});
}

}  // namespace

TrainingServiceImpl::TrainingServiceImpl(const ServerParts& parts, TrainingServiceOptions options)
    : parts_(parts), options_(std::move(options)) {}

template <class Response>
std::shared_ptr<UnaryCall<Response>> TrainingServiceImpl::StartCall(Context* context, Response* response) {
  auto call = UnaryCall<Response>::Start(response, options_.answer_timeout);
  if (const grpc::Status status = options_.token.Check(*context); !status.ok()) call->Fail(status);
  return call;
}

template <class Response>
void TrainingServiceImpl::InBackground(const std::shared_ptr<UnaryCall<Response>>& call, std::function<void()> work) {
  if (parts_.background->Run(std::move(work))) return;
  call->Fail(
      Error(grpc::StatusCode::RESOURCE_EXHAUSTED, "SERVER_OVERLOADED", "the server is overloaded, try again later"));
}

template <class Response>
void TrainingServiceImpl::WithJob(const std::shared_ptr<UnaryCall<Response>>& call, const std::string& job_id,
                                  std::function<void(const core::JobView&)> answer) {
  if (call->ended()) return;
  parts_.coordinator->Query([this, call, job_id, answer = std::move(answer)](absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return (void)call->Fail(Error(core.status()));
    const absl::StatusOr<JobId> resolved = (*core)->ResolveJob(job_id);
    if (!resolved.ok()) return (void)call->Fail(Error(resolved.status()));
    absl::StatusOr<core::JobView> view = (*core)->ViewJob(*resolved);
    if (!view.ok()) return (void)call->Fail(Error(view.status()));
    InBackground(call, [answer, view = *std::move(view)] { answer(view); });
  });
}

grpc::ServerUnaryReactor* TrainingServiceImpl::SubmitJob(Context* context, const v1::SubmitJobRequest* request,
                                                         v1::SubmitJobResponse* response) {
  const auto call = StartCall(context, response);
  if (call->ended()) return call.get();
  CheckedSubmit checked = CheckSubmit(*request, options_.roots);
  if (!checked.status.ok()) {
    call->Fail(checked.status);
    return call.get();
  }
  parts_.coordinator->Query([this, call, validate_only = request->validate_only(),
                             checked = std::move(checked)](absl::StatusOr<const core::Core*> core) mutable {
    if (!core.ok()) return (void)call->Fail(Error(core.status()));
    // A job that was accepted stays so, whatever has become of the slots.
    const bool known = !validate_only && (*core)->FindRequest(checked.job.request_id).has_value();
    std::vector<SlotMemory> slots;
    if (!known) slots = SlotsToPlanFor((*core)->ListSlotKinds());
    InBackground(call, [this, call, validate_only, checked = std::move(checked), slots = std::move(slots)]() mutable {
      const FitCheck fit = CheckFits(checked.spec, options_.roots, slots, &fits_);
      if (!fit.status.ok()) return (void)call->Fail(fit.status);
      if (!checked.spec.resources.memory_bytes_min) checked.job.requirements.memory_bytes_min = fit.memory_bytes_min;
      if (!validate_only) return StoreJob(call, std::move(checked.job));
      core::JobView view;
      view.job = std::move(checked.job);
      call->Answer([&](v1::SubmitJobResponse* answer) {
        *answer->mutable_job()->mutable_spec() = ToMessage(view).spec();
        return grpc::Status::OK;
      });
    });
  });
  return call.get();
}

void TrainingServiceImpl::StoreJob(const std::shared_ptr<UnaryCall<v1::SubmitJobResponse>>& call, core::Job job) {
  job.id = JobId(NewJobId());
  job.folder = (parts_.storage / "jobs" / job.id.value()).string();
  job.submit_time = parts_.coordinator->Now();
  const std::string queue = job.queue;
  parts_.coordinator->Send(core::JobSubmitted{std::move(job)},
                           [this, call, queue](absl::StatusOr<core::Reply> reply, const core::Core* core) {
                             if (!reply.ok()) return (void)call->Fail(Error(reply.status()));
                             const auto& submit = std::get<core::SubmitReply>(*reply);
                             if (!submit.status.ok()) return (void)call->Fail(SubmitError(submit.status, queue));
                             absl::StatusOr<core::JobView> view = core->ViewJob(submit.job_id);
                             if (!view.ok()) return (void)call->Fail(Error(view.status()));
                             InBackground(call, [call, already = submit.already_submitted, view = *std::move(view)] {
                               call->Answer([&](v1::SubmitJobResponse* answer) {
                                 *answer->mutable_job() = ToMessage(view);
                                 answer->set_already_submitted(already);
                                 return grpc::Status::OK;
                               });
                             });
                           });
}

grpc::ServerUnaryReactor* TrainingServiceImpl::PlanJob(Context* context, const v1::PlanJobRequest* request,
                                                       v1::PlanJobResponse* response) {
  const auto call = StartCall(context, response);
  if (call->ended()) return call.get();
  std::vector<FieldViolation> violations;
  jobfile::JobSpec spec = CheckSpec(request->has_spec(), request->spec(), options_.roots, &violations);
  if (!violations.empty()) {
    call->Fail(InvalidFields("the job cannot be planned:", violations));
    return call.get();
  }
  parts_.coordinator->Query(
      [this, call, request = *request, spec = std::move(spec)](absl::StatusOr<const core::Core*> core) {
        if (!core.ok()) return (void)call->Fail(Error(core.status()));
        InBackground(call, [this, call, request, spec, slots = SlotsToPlanFor((*core)->ListSlotKinds())] {
          v1::PlanJobResponse planned;
          const grpc::Status status = AnswerPlan(request, spec, options_.roots, slots, &planned);
          if (!status.ok()) return (void)call->Fail(status);
          call->Answer([&](v1::PlanJobResponse* answer) {
            *answer = std::move(planned);
            return grpc::Status::OK;
          });
        });
      });
  return call.get();
}

grpc::ServerUnaryReactor* TrainingServiceImpl::GetJob(Context* context, const v1::GetJobRequest* request,
                                                      v1::GetJobResponse* response) {
  const auto call = StartCall(context, response);
  WithJob<v1::GetJobResponse>(call, request->job_id(), [call](const core::JobView& view) {
    call->Answer([&](v1::GetJobResponse* answer) {
      *answer->mutable_job() = ToMessage(view);
      return grpc::Status::OK;
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* TrainingServiceImpl::ListJobs(Context* context, const v1::ListJobsRequest* request,
                                                        v1::ListJobsResponse* response) {
  const auto call = StartCall(context, response);
  if (call->ended()) return call.get();
  const absl::StatusOr<JobListPage> parsed = JobListPage::Of(*request);
  if (!parsed.ok()) {
    call->Fail(Error(parsed.status()));
    return call.get();
  }
  parts_.coordinator->Query([this, call, page = *parsed](absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return (void)call->Fail(Error(core.status()));
    if (!page.before.empty() && !(*core)->ViewJob(page.before).ok()) {
      return (void)call->Fail(
          InvalidFields("the page cannot be found:",
                        {{"page_token", "starts at a job that is not there (any more); start again without one"}}));
    }
    std::vector<core::JobView> views =
        (*core)->ListJobs(page.before, page.size + 1, [&](const core::Job& job) { return page.Matches(job); });
    InBackground(call, [call, page, views = std::move(views)]() mutable {
      const bool more = views.size() > page.size;
      if (more) views.resize(page.size);
      call->Answer([&](v1::ListJobsResponse* answer) {
        for (const core::JobView& view : views) *answer->add_jobs() = ToMessage(view);
        if (more) answer->set_next_page_token(page.TokenAfter(views.back().job.id));
        return grpc::Status::OK;
      });
    });
  });
  return call.get();
}

template <class Response>
grpc::ServerUnaryReactor* TrainingServiceImpl::Command(Context* context, const std::string& job_id, Response* response,
                                                       std::function<core::Event(const JobId&)> make) {
  const auto call = StartCall(context, response);
  if (call->ended()) return call.get();
  parts_.coordinator->Query([this, call, job_id, make = std::move(make)](absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return (void)call->Fail(Error(core.status()));
    const absl::StatusOr<JobId> resolved = (*core)->ResolveJob(job_id);
    if (!resolved.ok()) return (void)call->Fail(Error(resolved.status()));
    parts_.coordinator->Send(make(*resolved),
                             [this, call, id = *resolved](absl::StatusOr<core::Reply> reply, const core::Core* core) {
                               if (!reply.ok()) return (void)call->Fail(Error(reply.status()));
                               const absl::Status& status = std::get<core::CommandReply>(*reply).status;
                               if (!status.ok()) return (void)call->Fail(Error(status));
                               absl::StatusOr<core::JobView> view = core->ViewJob(id);
                               if (!view.ok()) return (void)call->Fail(Error(view.status()));
                               InBackground(call, [call, view = *std::move(view)] {
                                 call->Answer([&](Response* answer) {
                                   *answer->mutable_job() = ToMessage(view);
                                   return grpc::Status::OK;
                                 });
                               });
                             });
  });
  return call.get();
}

grpc::ServerUnaryReactor* TrainingServiceImpl::CancelJob(Context* context, const v1::CancelJobRequest* request,
                                                         v1::CancelJobResponse* response) {
  return Command(context, request->job_id(), response,
                 [](const JobId& id) -> core::Event { return core::CancelRequested{id}; });
}
grpc::ServerUnaryReactor* TrainingServiceImpl::PauseJob(Context* context, const v1::PauseJobRequest* request,
                                                        v1::PauseJobResponse* response) {
  return Command(context, request->job_id(), response,
                 [](const JobId& id) -> core::Event { return core::PauseRequested{id}; });
}
grpc::ServerUnaryReactor* TrainingServiceImpl::ResumeJob(Context* context, const v1::ResumeJobRequest* request,
                                                         v1::ResumeJobResponse* response) {
  return Command(context, request->job_id(), response,
                 [](const JobId& id) -> core::Event { return core::ResumeRequested{id}; });
}

grpc::ServerUnaryReactor* TrainingServiceImpl::UpdateJob(Context* context, const v1::UpdateJobRequest* request,
                                                         v1::UpdateJobResponse* response) {
  CheckedUpdate checked = CheckUpdate(*request);
  if (!checked.status.ok()) {
    const auto call = StartCall(context, response);
    call->Fail(checked.status);  // unless the token is wrong
    return call.get();
  }
  return Command(context, request->job_id(), response,
                 [event = std::move(checked.event)](const JobId& id) -> core::Event {
                   core::UpdateRequested update = event;
                   update.job_id = id;
                   return update;
                 });
}

grpc::ServerUnaryReactor* TrainingServiceImpl::ListQueues(Context* context, const v1::ListQueuesRequest*,
                                                          v1::ListQueuesResponse* response) {
  const auto call = StartCall(context, response);
  if (call->ended()) return call.get();
  parts_.coordinator->Query([this, call](absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return (void)call->Fail(Error(core.status()));
    call->Answer([&](v1::ListQueuesResponse* answer) {
      for (const core::QueueView& view : (*core)->ListQueues(parts_.coordinator->Now())) {
        *answer->add_queues() = ToMessage(view);
      }
      return grpc::Status::OK;
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* TrainingServiceImpl::UpdateQueue(Context* context, const v1::UpdateQueueRequest* request,
                                                           v1::UpdateQueueResponse* response) {
  const auto call = StartCall(context, response);
  if (call->ended()) return call.get();
  CheckedQueue checked = CheckQueue(*request);
  if (!checked.status.ok()) {
    call->Fail(checked.status);
    return call.get();
  }
  parts_.coordinator->Send(std::move(checked.event), [this, call, name = request->queue().name()](
                                                         absl::StatusOr<core::Reply> reply, const core::Core* core) {
    if (!reply.ok()) return (void)call->Fail(Error(reply.status()));
    const absl::Status& status = std::get<core::CommandReply>(*reply).status;
    if (!status.ok()) return (void)call->Fail(Error(status));
    call->Answer([&](v1::UpdateQueueResponse* answer) {
      for (const core::QueueView& view : core->ListQueues(parts_.coordinator->Now())) {
        if (view.queue.name == name) *answer->mutable_queue() = ToMessage(view);
      }
      return grpc::Status::OK;
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* TrainingServiceImpl::ListCheckpoints(Context* context,
                                                               const v1::ListCheckpointsRequest* request,
                                                               v1::ListCheckpointsResponse* response) {
  const auto call = StartCall(context, response);
  if (call->ended()) return call.get();
  parts_.coordinator->Query([call, job_id = request->job_id()](absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return (void)call->Fail(Error(core.status()));
    const absl::StatusOr<JobId> resolved = (*core)->ResolveJob(job_id);
    if (!resolved.ok()) return (void)call->Fail(Error(resolved.status()));
    const auto checkpoints = (*core)->ListCheckpoints(*resolved);
    if (!checkpoints.ok()) return (void)call->Fail(Error(checkpoints.status()));
    call->Answer([&](v1::ListCheckpointsResponse* answer) {
      for (const core::Checkpoint& checkpoint : *checkpoints) *answer->add_checkpoints() = ToMessage(checkpoint);
      return grpc::Status::OK;
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* TrainingServiceImpl::ListWorkers(Context* context, const v1::ListWorkersRequest*,
                                                           v1::ListWorkersResponse* response) {
  const auto call = StartCall(context, response);
  if (call->ended()) return call.get();
  parts_.coordinator->Query([call](absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return (void)call->Fail(Error(core.status()));
    call->Answer([&](v1::ListWorkersResponse* answer) {
      for (const core::WorkerView& view : (*core)->ListWorkers()) *answer->add_workers() = ToMessage(view);
      return grpc::Status::OK;
    });
  });
  return call.get();
}

template <class Response>
grpc::ServerUnaryReactor* TrainingServiceImpl::WorkerCommand(Context* context, const WorkerId& worker_id,
                                                             Response* response, core::Event event) {
  const auto call = StartCall(context, response);
  if (call->ended()) return call.get();
  parts_.coordinator->Send(
      std::move(event), [call, worker_id](absl::StatusOr<core::Reply> reply, const core::Core* core) {
        if (!reply.ok()) return (void)call->Fail(Error(reply.status()));
        const absl::Status& status = std::get<core::CommandReply>(*reply).status;
        if (!status.ok()) return (void)call->Fail(Error(status));
        const std::optional<core::WorkerView> view = core->ViewWorker(worker_id);
        if (!view)
          return (void)call->Fail(
              Error(grpc::StatusCode::NOT_FOUND, "WORKER_NOT_FOUND", fmt::format("there is no worker {}", worker_id)));
        call->Answer([&](Response* answer) {
          *answer->mutable_worker() = ToMessage(*view);
          return grpc::Status::OK;
        });
      });
  return call.get();
}

grpc::ServerUnaryReactor* TrainingServiceImpl::DrainWorker(Context* context, const v1::DrainWorkerRequest* request,
                                                           v1::DrainWorkerResponse* response) {
  const WorkerId worker_id(request->worker_id());
  return WorkerCommand(context, worker_id, response, core::DrainRequested{worker_id, request->move()});
}
grpc::ServerUnaryReactor* TrainingServiceImpl::UndrainWorker(Context* context, const v1::UndrainWorkerRequest* request,
                                                             v1::UndrainWorkerResponse* response) {
  const WorkerId worker_id(request->worker_id());
  return WorkerCommand(context, worker_id, response, core::UndrainRequested{worker_id});
}

grpc::ServerUnaryReactor* TrainingServiceImpl::ListFiles(Context* context, const v1::ListFilesRequest* request,
                                                         v1::ListFilesResponse* response) {
  const auto call = StartCall(context, response);
  WithJob<v1::ListFilesResponse>(
      call, request->job_id(),
      [call, folder = request->folder(), recursive = request->recursive()](const core::JobView& view) {
        const auto entries = ListFolder(view.job.folder, folder, recursive);
        if (!entries.ok()) return (void)call->Fail(Error(entries.status()));
        call->Answer([&](v1::ListFilesResponse* answer) {
          for (const FolderEntry& entry : *entries) {
            v1::FileInfo* file = answer->add_files();
            file->set_path(entry.path);
            file->set_size_bytes(entry.size_bytes);
            file->set_is_folder(entry.is_folder);
            file->mutable_modify_time()->set_seconds(entry.modified_ns / 1'000'000'000);
            file->mutable_modify_time()->set_nanos(static_cast<int32_t>(entry.modified_ns % 1'000'000'000));
          }
          return grpc::Status::OK;
        });
      });
  return call.get();
}

grpc::ServerUnaryReactor* TrainingServiceImpl::GetServerInfo(Context* context, const v1::GetServerInfoRequest*,
                                                             v1::GetServerInfoResponse* response) {
  const auto call = StartCall(context, response);
  call->Answer([&](v1::GetServerInfoResponse* answer) {
    answer->set_version(options_.version);
    answer->set_cluster(options_.cluster);
    answer->set_storage(parts_.storage.string());
    answer->set_http_port(options_.http_port());
    answer->mutable_start_time()->set_seconds(absl::ToUnixSeconds(options_.start_time));
    return grpc::Status::OK;
  });
  return call.get();
}

template <class Response, class Request>
grpc::ServerWriteReactor<Response>* TrainingServiceImpl::StartStream(
    Context* context, const Request* request,
    Writer<Response>* (*start)(const ServerParts&, Context*, const Request&, StreamLimits)) {
  if (const grpc::Status status = options_.token.Check(*context); !status.ok())
    return new RefusedWriter<Response>(status);
  return start(parts_, context, *request, options_.streams);
}

grpc::ServerWriteReactor<v1::WatchJobResponse>* TrainingServiceImpl::WatchJob(Context* context,
                                                                              const v1::WatchJobRequest* request) {
  return StartStream<v1::WatchJobResponse>(context, request, &StartWatch);
}
grpc::ServerWriteReactor<v1::StreamLogsResponse>* TrainingServiceImpl::StreamLogs(
    Context* context, const v1::StreamLogsRequest* request) {
  return StartStream<v1::StreamLogsResponse>(context, request, &StartLogStream);
}
grpc::ServerWriteReactor<v1::DownloadFileResponse>* TrainingServiceImpl::DownloadFile(
    Context* context, const v1::DownloadFileRequest* request) {
  return StartStream<v1::DownloadFileResponse>(context, request, &StartDownload);
}

grpc::ServerUnaryReactor* TrainingServiceImpl::NotYet(Context* context, const char* method) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const grpc::Status status = options_.token.Check(*context);
  reactor->Finish(status.ok() ? NotYetStatus(method) : status);
  return reactor;
}

grpc::ServerUnaryReactor* TrainingServiceImpl::ExportJob(Context* context, const v1::ExportJobRequest*,
                                                         v1::ExportJobResponse*) {
  return NotYet(context, "ExportJob");
}
grpc::ServerUnaryReactor* TrainingServiceImpl::EvaluateModel(Context* context, const v1::EvaluateModelRequest*,
                                                             v1::EvaluateModelResponse*) {
  return NotYet(context, "EvaluateModel");
}
grpc::ServerUnaryReactor* TrainingServiceImpl::DeleteJob(Context* context, const v1::DeleteJobRequest* request,
                                                         v1::DeleteJobResponse* response) {
  const auto call = StartCall(context, response);
  if (call->ended()) return call.get();
  parts_.coordinator->Query([this, call, asked_for = request->job_id()](absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return (void)call->Fail(Error(core.status()));
    const absl::StatusOr<JobId> resolved = (*core)->ResolveJob(asked_for);
    if (!resolved.ok()) return (void)call->Fail(Error(resolved.status()));
    parts_.coordinator->Send(core::DeleteRequested{*resolved},
                             [call](absl::StatusOr<core::Reply> reply, const core::Core*) {
                               if (!reply.ok()) return (void)call->Fail(Error(reply.status()));
                               const absl::Status& status = std::get<core::CommandReply>(*reply).status;
                               if (!status.ok()) return (void)call->Fail(Error(status));
                               call->Answer([](v1::DeleteJobResponse*) { return grpc::Status::OK; });
                             });
  });
  return call.get();
}
grpc::ServerReadReactor<v1::UploadFileRequest>* TrainingServiceImpl::UploadFile(Context* context,
                                                                                v1::UploadFileResponse*) {
  const grpc::Status status = options_.token.Check(*context);
  return new RefusedReader<v1::UploadFileRequest>(status.ok() ? NotYetStatus("UploadFile") : status);
}
grpc::ServerUnaryReactor* TrainingServiceImpl::CreateToken(Context* context, const v1::CreateTokenRequest*,
                                                           v1::CreateTokenResponse*) {
  return NotYet(context, "CreateToken");
}
grpc::ServerUnaryReactor* TrainingServiceImpl::ListTokens(Context* context, const v1::ListTokensRequest*,
                                                          v1::ListTokensResponse*) {
  return NotYet(context, "ListTokens");
}
grpc::ServerUnaryReactor* TrainingServiceImpl::RevokeToken(Context* context, const v1::RevokeTokenRequest*,
                                                           v1::RevokeTokenResponse*) {
  return NotYet(context, "RevokeToken");
}

}  // namespace longspan::rpc
