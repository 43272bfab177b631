// What clients call: checks, translates, asks the coordinator, answers. Thread-safe; one instance per server.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "longspan/v1/training_service.grpc.pb.h"
#include "server/rpc/authentication.h"
#include "server/rpc/fit_cache.h"
#include "server/rpc/pull_stream.h"
#include "server/rpc/server_parts.h"
#include "server/rpc/unary_call.h"

namespace longspan::rpc {

struct TrainingServiceOptions {
  BearerToken token;
  std::vector<std::filesystem::path> roots;  // where job paths may lie; empty: anywhere
  std::chrono::milliseconds answer_timeout = std::chrono::seconds(10);
  StreamLimits streams;
  std::string version;
  std::string cluster;
  absl::Time start_time = absl::Now();
  std::function<int()> http_port = [] { return 0; };
};

class TrainingServiceImpl final : public v1::TrainingService::CallbackService {
 public:
  TrainingServiceImpl(const ServerParts& parts, TrainingServiceOptions options);

  using Context = grpc::CallbackServerContext;
  template <class Response>
  using Writer = grpc::ServerWriteReactor<Response>;
  using Unary = grpc::ServerUnaryReactor;

  Unary* SubmitJob(Context*, const v1::SubmitJobRequest*, v1::SubmitJobResponse*) override;
  Unary* GetJob(Context*, const v1::GetJobRequest*, v1::GetJobResponse*) override;
  Unary* ListJobs(Context*, const v1::ListJobsRequest*, v1::ListJobsResponse*) override;
  Unary* CancelJob(Context*, const v1::CancelJobRequest*, v1::CancelJobResponse*) override;
  Unary* PauseJob(Context*, const v1::PauseJobRequest*, v1::PauseJobResponse*) override;
  Unary* ResumeJob(Context*, const v1::ResumeJobRequest*, v1::ResumeJobResponse*) override;
  Unary* UpdateJob(Context*, const v1::UpdateJobRequest*, v1::UpdateJobResponse*) override;
  Unary* ListQueues(Context*, const v1::ListQueuesRequest*, v1::ListQueuesResponse*) override;
  Unary* UpdateQueue(Context*, const v1::UpdateQueueRequest*, v1::UpdateQueueResponse*) override;
  Unary* ListCheckpoints(Context*, const v1::ListCheckpointsRequest*, v1::ListCheckpointsResponse*) override;
  Unary* ListWorkers(Context*, const v1::ListWorkersRequest*, v1::ListWorkersResponse*) override;
  Unary* DrainWorker(Context*, const v1::DrainWorkerRequest*, v1::DrainWorkerResponse*) override;
  Unary* UndrainWorker(Context*, const v1::UndrainWorkerRequest*, v1::UndrainWorkerResponse*) override;
  Unary* PlanJob(Context*, const v1::PlanJobRequest*, v1::PlanJobResponse*) override;
  Unary* ListFiles(Context*, const v1::ListFilesRequest*, v1::ListFilesResponse*) override;
  Unary* DeleteJob(Context*, const v1::DeleteJobRequest*, v1::DeleteJobResponse*) override;
  Unary* GetServerInfo(Context*, const v1::GetServerInfoRequest*, v1::GetServerInfoResponse*) override;
  Writer<v1::WatchJobResponse>* WatchJob(Context*, const v1::WatchJobRequest*) override;
  Writer<v1::StreamLogsResponse>* StreamLogs(Context*, const v1::StreamLogsRequest*) override;
  Writer<v1::DownloadFileResponse>* DownloadFile(Context*, const v1::DownloadFileRequest*) override;

  // Declared, not built yet: UNIMPLEMENTED with a sentence.
  Unary* ExportJob(Context*, const v1::ExportJobRequest*, v1::ExportJobResponse*) override;
  Unary* EvaluateModel(Context*, const v1::EvaluateModelRequest*, v1::EvaluateModelResponse*) override;
  grpc::ServerReadReactor<v1::UploadFileRequest>* UploadFile(Context*, v1::UploadFileResponse*) override;
  Unary* CreateToken(Context*, const v1::CreateTokenRequest*, v1::CreateTokenResponse*) override;
  Unary* ListTokens(Context*, const v1::ListTokensRequest*, v1::ListTokensResponse*) override;
  Unary* RevokeToken(Context*, const v1::RevokeTokenRequest*, v1::RevokeTokenResponse*) override;

 private:
  template <class Response>
  std::shared_ptr<UnaryCall<Response>> StartCall(Context* context, Response* response);
  template <class Response, class Request>
  Writer<Response>* StartStream(Context* context, const Request* request,
                                Writer<Response>* (*start)(const ServerParts&, Context*, const Request&, StreamLimits));
  // The second half of SubmitJob.
  void StoreJob(const std::shared_ptr<UnaryCall<v1::SubmitJobResponse>>& call, core::Job job);
  // Resolves the job, sends `make(id)` to the core, answers with the job.
  template <class Response>
  Unary* Command(Context* context, const std::string& job_id, Response* response,
                 std::function<core::Event(const JobId&)> make);
  template <class Response>
  Unary* WorkerCommand(Context* context, const WorkerId& worker_id, Response* response, core::Event event);
  // Resolves the job and hands its view to `answer` on a background thread.
  template <class Response>
  void WithJob(const std::shared_ptr<UnaryCall<Response>>& call, const std::string& job_id,
               std::function<void(const core::JobView&)> answer);
  template <class Response>
  void InBackground(const std::shared_ptr<UnaryCall<Response>>& call, std::function<void()> work);
  Unary* NotYet(Context* context, const char* method);

  const ServerParts parts_;
  const TrainingServiceOptions options_;
  FitCache fits_;
};

}  // namespace longspan::rpc
