// A TrainingService inside the test: answers are set by the test, requests are kept for it. And a client whose
// surroundings are strings.
#pragma once

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "client/client.h"
#include "longspan/v1/training_service.grpc.pb.h"

namespace longspan::client {

// The calls that are under way in this process. A client may have its answer, and be gone, before the call that gave it
// has returned: tests touch the members of a service only after `WaitForNone`.
class CallsUnderWay {
 public:
  void Begin() {
    const std::lock_guard lock(mutex_);
    ++count_;
  }
  void End() {
    {
      const std::lock_guard lock(mutex_);
      --count_;
    }
    none_.notify_all();
  }
  void WaitForNone() {
    std::unique_lock lock(mutex_);
    none_.wait(lock, [this] { return count_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable none_;
  int count_ = 0;
};
inline CallsUnderWay calls_under_way;

// A call at work on the members of the service, which tests set and read while no call is under way.
class Visit {
 public:
  Visit() { calls_under_way.Begin(); }
  ~Visit() { calls_under_way.End(); }
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;
};

class FakeService final : public v1::TrainingService::Service {
 public:
  using WatchScript =
      std::function<grpc::Status(const v1::WatchJobRequest&, grpc::ServerWriter<v1::WatchJobResponse>*)>;

  grpc::Status SubmitJob(grpc::ServerContext* context, const v1::SubmitJobRequest* request,
                         v1::SubmitJobResponse* response) override {
    const Visit visit;
    const auto& metadata = context->client_metadata();
    if (const auto found = metadata.find("authorization"); found != metadata.end())
      authorization = {found->second.data(), found->second.size()};
    submitted.push_back(*request);
    if (unavailable_submits > 0) {
      --unavailable_submits;
      return {grpc::StatusCode::UNAVAILABLE, "restarting"};
    }
    if (!submit_status.ok()) return submit_status;
    *response->mutable_job() = job;
    *response->mutable_job()->mutable_spec() = request->spec();
    return grpc::Status::OK;
  }
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest* request, v1::GetJobResponse* response) override {
    const Visit visit;
    if (request->job_id() != job.job_id()) return {grpc::StatusCode::NOT_FOUND, "there is no job " + request->job_id()};
    *response->mutable_job() = job;
    return grpc::Status::OK;
  }
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override {
    const Visit visit;
    listed.push_back(*request);
    *response = pages[std::min(listed.size(), pages.size()) - 1];
    return grpc::Status::OK;
  }
  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::WatchJobResponse>* writer) override {
    const Visit visit;
    watched.push_back(*request);
    return watch_scripts.at(std::min(watched.size(), watch_scripts.size()) - 1)(*request, writer);
  }
  grpc::Status StreamLogs(grpc::ServerContext*, const v1::StreamLogsRequest* request,
                          grpc::ServerWriter<v1::StreamLogsResponse>* writer) override {
    const Visit visit;
    v1::StreamLogsResponse response;
    response.set_data(log.substr(static_cast<size_t>(request->offset()), 5));
    response.set_next_offset(request->offset() + static_cast<int64_t>(response.data().size()));
    if (!response.data().empty()) writer->Write(response);
    return response.next_offset() < static_cast<int64_t>(log.size())
               ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away")
               : grpc::Status::OK;
  }
  grpc::Status ListWorkers(grpc::ServerContext*, const v1::ListWorkersRequest*,
                           v1::ListWorkersResponse* response) override {
    const Visit visit;
    *response = workers;
    return grpc::Status::OK;
  }
  grpc::Status ListCheckpoints(grpc::ServerContext*, const v1::ListCheckpointsRequest*,
                               v1::ListCheckpointsResponse* response) override {
    const Visit visit;
    *response = checkpoints;
    return grpc::Status::OK;
  }
  grpc::Status PlanJob(grpc::ServerContext*, const v1::PlanJobRequest* request,
                       v1::PlanJobResponse* response) override {
    const Visit visit;
    planned.push_back(*request);
    *response = plan;
    return plan_status;
  }
  grpc::Status DeleteJob(grpc::ServerContext*, const v1::DeleteJobRequest* request, v1::DeleteJobResponse*) override {
    const Visit visit;
    deleted.push_back(request->job_id());
    return grpc::Status::OK;
  }
  grpc::Status CancelJob(grpc::ServerContext*, const v1::CancelJobRequest*, v1::CancelJobResponse* response) override {
    const Visit visit;
    *response->mutable_job() = job;
    response->mutable_job()->set_state(v1::JOB_STATE_CANCELLING);
    return grpc::Status::OK;
  }
  grpc::Status UpdateJob(grpc::ServerContext*, const v1::UpdateJobRequest* request,
                         v1::UpdateJobResponse* response) override {
    const Visit visit;
    updates.push_back(*request);
    *response->mutable_job() = job;
    return grpc::Status::OK;
  }
  grpc::Status ListQueues(grpc::ServerContext*, const v1::ListQueuesRequest*,
                          v1::ListQueuesResponse* response) override {
    const Visit visit;
    *response = queues;
    return grpc::Status::OK;
  }
  grpc::Status UpdateQueue(grpc::ServerContext*, const v1::UpdateQueueRequest* request,
                           v1::UpdateQueueResponse* response) override {
    const Visit visit;
    queue_updates.push_back(*request);
    *response->mutable_queue() = request->queue();
    return grpc::Status::OK;
  }
  grpc::Status DrainWorker(grpc::ServerContext*, const v1::DrainWorkerRequest* request,
                           v1::DrainWorkerResponse* response) override {
    const Visit visit;
    drains.push_back(*request);
    response->mutable_worker()->set_worker_id(request->worker_id());
    return grpc::Status::OK;
  }
  grpc::Status ListFiles(grpc::ServerContext*, const v1::ListFilesRequest* request,
                         v1::ListFilesResponse* response) override {
    const Visit visit;
    if (const auto found = folders.find(request->folder()); found != folders.end()) *response = found->second;
    return grpc::Status::OK;
  }
  grpc::Status DownloadFile(grpc::ServerContext*, const v1::DownloadFileRequest* request,
                            grpc::ServerWriter<v1::DownloadFileResponse>* writer) override {
    const Visit visit;
    downloads.push_back(*request);
    return download_script(*request, writer);
  }

  v1::Job job;
  grpc::Status submit_status;
  int unavailable_submits = 0;
  std::string authorization;
  std::vector<v1::SubmitJobRequest> submitted;
  std::vector<v1::ListJobsRequest> listed;
  std::vector<v1::ListJobsResponse> pages = {{}};
  std::vector<v1::WatchJobRequest> watched;
  std::vector<WatchScript> watch_scripts;
  std::string log;
  std::vector<v1::UpdateJobRequest> updates;
  v1::ListQueuesResponse queues;
  std::vector<v1::UpdateQueueRequest> queue_updates;
  std::vector<v1::DrainWorkerRequest> drains;
  v1::ListWorkersResponse workers;
  v1::ListCheckpointsResponse checkpoints;
  v1::PlanJobResponse plan;
  grpc::Status plan_status;
  std::vector<v1::PlanJobRequest> planned;
  std::map<std::string, v1::ListFilesResponse> folders;
  std::vector<std::string> deleted;
  std::vector<v1::DownloadFileRequest> downloads;
  std::function<grpc::Status(const v1::DownloadFileRequest&, grpc::ServerWriter<v1::DownloadFileResponse>*)>
      download_script;
};

class FakeServer {
 public:
  FakeServer() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service);
    server_ = builder.BuildAndStart();
    address = "127.0.0.1:" + std::to_string(port);
  }
  ~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

  FakeService service;
  std::string address;

 private:
  std::unique_ptr<grpc::Server> server_;
};

struct Result {
  int exit_code = 0;
  std::string out;
  std::string err;
};

// Runs `longspan` with a fixed clock, no waiting, and no variables but these.
class TestClient {
 public:
  Result Run(const std::vector<std::string>& arguments) const {
    calls_under_way.WaitForNone();
    std::ostringstream out, err;
    std::istringstream in(input);
    Environment environment;
    environment.out = &out;
    environment.err = &err;
    environment.in = &in;
    environment.out_is_terminal = terminal;
    environment.width = width;
    environment.variable = [this](const std::string& name) -> std::optional<std::string> {
      const auto found = variables.find(name);
      return found == variables.end() ? std::nullopt : std::optional<std::string>(found->second);
    };
    environment.now = [] { return std::chrono::system_clock::time_point(std::chrono::seconds(1'000'000)); };
    environment.sleep = [](std::chrono::milliseconds) {};
    const int exit_code = RunClient(arguments, environment);
    calls_under_way.WaitForNone();
    return {exit_code, out.str(), err.str()};
  }

  std::map<std::string, std::string> variables;
  std::string input;
  bool terminal = false;
  int width = 100;
};

}  // namespace longspan::client
