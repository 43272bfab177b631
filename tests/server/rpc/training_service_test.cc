#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "proto/support/status.h"
#include "server/rpc/submit.h"
#include "tests/server/rpc/test_cluster.h"
#include "worker/storage/storage.h"

namespace longspan::testing {
namespace {

using ::testing::Contains;
using ::testing::Field;
using ::testing::HasSubstr;

std::string ReasonOf(const grpc::Status& status) { return DetailsOf(ToAbslStatus(status)).reason; }

TEST(SubmitJob, StoresTheJobWithItsDefaultsWrittenOut) {
  TestCluster cluster;
  const v1::Job job = cluster.Submit("request-1");
  EXPECT_THAT(job.job_id(), ::testing::StartsWith("job-"));
  EXPECT_EQ(job.state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(job.spec().queue(), "default");
  EXPECT_EQ(job.spec().training().steps(), 1000);
  EXPECT_EQ(job.folder(), (cluster.storage() / "jobs" / job.job_id()).string());
  EXPECT_GT(job.submit_time().seconds(), 0);
}

TEST(SubmitJob, SaysEveryMistakeAtOnce) {
  TestCluster cluster;
  v1::SubmitJobRequest request;
  *request.mutable_spec() = ValidSpec();
  request.mutable_spec()->set_name("Not A Name");
  request.mutable_spec()->set_priority(101);
  request.mutable_spec()->mutable_training()->set_learning_rate(-1);
  request.mutable_spec()->mutable_rope()->set_theta(5e5);  // of another kind
  request.mutable_spec()->mutable_data()->set_sources(0, "relative/corpus.txt");
  v1::SubmitJobResponse response;
  const grpc::Status status = cluster.client().SubmitJob(NewContext().get(), request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const StatusDetails details = DetailsOf(ToAbslStatus(status));
  for (const char* field : {"request_id", "spec.name", "spec.priority", "spec.training.learning_rate",
                            "spec.rope.theta", "spec.data.sources[0]"}) {
    EXPECT_THAT(details.violations, Contains(Field(&FieldViolation::field, field)));
    EXPECT_THAT(status.error_message(), HasSubstr(field));
  }
}

TEST(SubmitJob, TheSameRequestGivesTheSameJobAlsoAfterARestart) {
  TestCluster cluster;
  const v1::Job first = cluster.Submit("request-1");
  EXPECT_EQ(cluster.Submit("request-1").job_id(), first.job_id());
  cluster.RestartServer();
  EXPECT_EQ(cluster.Submit("request-1").job_id(), first.job_id());
  EXPECT_NE(cluster.Submit("request-2").job_id(), first.job_id());
}

// A client may retry after the server was replaced by one that knows more keys. The number is what a first server has
// stored; it may not change.
TEST(SubmitJob, WhatTellsARetryDoesNotDependOnTheKeysThatTheServerKnows) {
  v1::SubmitJobRequest request;
  request.set_request_id("request-1");
  *request.mutable_spec() = ValidSpec();
  const rpc::CheckedSubmit checked = rpc::CheckSubmit(request, {});
  ASSERT_TRUE(checked.status.ok());
  EXPECT_EQ(checked.job.content_hash, "c5073ae40206054ee4c2eba59f4a6de2aa0959e98100043fe55cdeedec96ef9c");
  request.mutable_spec()->set_priority(50);  // as it is by default
  EXPECT_EQ(rpc::CheckSubmit(request, {}).job.content_hash, checked.job.content_hash);
  request.mutable_spec()->set_priority(51);
  EXPECT_NE(rpc::CheckSubmit(request, {}).job.content_hash, checked.job.content_hash);
}

TEST(SubmitJob, AnotherContentUnderTheSameRequestIsRefused) {
  TestCluster cluster;
  cluster.Submit("request-1");
  v1::SubmitJobRequest request;
  request.set_request_id("request-1");
  *request.mutable_spec() = ValidSpec();
  request.mutable_spec()->set_priority(60);
  v1::SubmitJobResponse response;
  const grpc::Status status = cluster.client().SubmitJob(NewContext().get(), request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(status.error_message(), HasSubstr("request-1"));
}

TEST(SubmitJob, ValidateOnlyStoresNothing) {
  TestCluster cluster;
  v1::SubmitJobRequest request;
  *request.mutable_spec() = ValidSpec();
  request.set_validate_only(true);
  v1::SubmitJobResponse response;
  ASSERT_TRUE(cluster.client().SubmitJob(NewContext().get(), request, &response).ok());
  EXPECT_EQ(response.job().job_id(), "");
  EXPECT_EQ(response.job().spec().priority(), 50);
  v1::ListJobsResponse jobs;
  ASSERT_TRUE(cluster.client().ListJobs(NewContext().get(), {}, &jobs).ok());
  EXPECT_EQ(jobs.jobs_size(), 0);
}

TEST(SubmitJob, PathsMustLieUnderTheRoots) {
  TestCluster cluster([](rpc::RpcServerOptions* options) { options->training.roots = {"/shared"}; });
  cluster.Submit("inside");
  v1::SubmitJobRequest request;
  request.set_request_id("outside");
  *request.mutable_spec() = ValidSpec();
  request.mutable_spec()->mutable_model()->set_path("/etc/models");
  request.mutable_spec()->mutable_data()->set_sources(0, "/shared/../etc/passwd");
  v1::SubmitJobResponse response;
  const grpc::Status status = cluster.client().SubmitJob(NewContext().get(), request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("spec.model.path"));
  EXPECT_THAT(status.error_message(), HasSubstr("spec.data.sources[0]"));
}

TEST(SubmitJob, ARequestThatIsTooLargeIsRefusedAndHarmsNothing) {
  TestCluster cluster;
  v1::SubmitJobRequest request;
  request.set_request_id("large");
  *request.mutable_spec() = ValidSpec();
  (*request.mutable_spec()->mutable_labels())["label"] = std::string(20 << 20, 'x');
  v1::SubmitJobResponse response;
  const grpc::Status status = cluster.client().SubmitJob(NewContext().get(), request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  cluster.Submit("request-1");
}

TEST(GetJob, TakesAnIdOrTheNameOfOneJob) {
  TestCluster cluster;
  const v1::Job job = cluster.Submit("request-1");
  EXPECT_EQ(cluster.Get("extend").job_id(), job.job_id());
  cluster.Submit("request-2");
  v1::GetJobRequest request;
  v1::GetJobResponse response;
  request.set_job_id("extend");
  EXPECT_EQ(cluster.client().GetJob(NewContext().get(), request, &response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  request.set_job_id("nothing");
  EXPECT_EQ(cluster.client().GetJob(NewContext().get(), request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(ListJobs, PagesAndFiltersNewestFirst) {
  TestCluster cluster;
  std::vector<std::string> submitted;
  for (int i = 0; i < 5; ++i) {
    submitted.push_back(
        cluster
            .Submit("request-" + std::to_string(i),
                    [&](v1::JobSpec* spec) { (*spec->mutable_labels())["parity"] = i % 2 == 0 ? "even" : "odd"; })
            .job_id());
  }
  v1::ListJobsRequest request;
  request.set_page_size(2);
  std::vector<std::string> listed;
  do {
    v1::ListJobsResponse response;
    ASSERT_TRUE(cluster.client().ListJobs(NewContext().get(), request, &response).ok());
    EXPECT_LE(response.jobs_size(), 2);
    for (const v1::Job& job : response.jobs()) listed.push_back(job.job_id());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(listed, std::vector<std::string>(submitted.rbegin(), submitted.rend()));

  request.Clear();
  (*request.mutable_labels())["parity"] = "odd";
  v1::ListJobsResponse odd;
  ASSERT_TRUE(cluster.client().ListJobs(NewContext().get(), request, &odd).ok());
  EXPECT_EQ(odd.jobs_size(), 2);
  request.set_page_token("nonsense");
  EXPECT_EQ(cluster.client().ListJobs(NewContext().get(), request, &odd).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(CancelJob, EndsAWaitingJobAndMayBeRepeated) {
  TestCluster cluster;
  const v1::Job job = cluster.Submit("request-1");
  v1::CancelJobRequest request;
  request.set_job_id(job.job_id());
  for (int i = 0; i < 2; ++i) {
    v1::CancelJobResponse response;
    ASSERT_TRUE(cluster.client().CancelJob(NewContext().get(), request, &response).ok());
    EXPECT_EQ(response.job().state(), v1::JOB_STATE_CANCELLED);
  }
}

TEST(DeleteJob, ForgetsAJobThatHasEndedAndNoOther) {
  TestCluster cluster;
  const v1::Job job = cluster.Submit("request-1");
  v1::DeleteJobRequest request;
  request.set_job_id(job.job_id());
  v1::DeleteJobResponse response;
  const grpc::Status early = cluster.client().DeleteJob(NewContext().get(), request, &response);
  EXPECT_EQ(early.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(early.error_message(), HasSubstr("cancel it first"));
  v1::CancelJobRequest cancel;
  cancel.set_job_id(job.job_id());
  v1::CancelJobResponse cancelled;
  ASSERT_TRUE(cluster.client().CancelJob(NewContext().get(), cancel, &cancelled).ok());
  ASSERT_TRUE(cluster.client().DeleteJob(NewContext().get(), request, &response).ok());
  EXPECT_EQ(cluster.client().DeleteJob(NewContext().get(), request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST(PauseJob, StopsAWaitingJobUntilItIsResumed) {
  TestCluster cluster;
  const v1::Job job = cluster.Submit("request-1");
  v1::PauseJobRequest pause;
  pause.set_job_id(job.job_id());
  v1::PauseJobResponse paused;
  ASSERT_TRUE(cluster.client().PauseJob(NewContext().get(), pause, &paused).ok());
  EXPECT_EQ(paused.job().state(), v1::JOB_STATE_PAUSED);
  v1::ResumeJobRequest resume;
  resume.set_job_id(job.job_id());
  v1::ResumeJobResponse resumed;
  ASSERT_TRUE(cluster.client().ResumeJob(NewContext().get(), resume, &resumed).ok());
  EXPECT_EQ(resumed.job().state(), v1::JOB_STATE_QUEUED);
}

TEST(Workers, AreListedDrainedAndUndrained) {
  TestCluster cluster;
  TestWorker worker(&cluster, "gpu-1", 2);
  ASSERT_TRUE(worker.Synchronize().ok());
  v1::ListWorkersResponse workers;
  ASSERT_TRUE(cluster.client().ListWorkers(NewContext().get(), {}, &workers).ok());
  ASSERT_EQ(workers.workers_size(), 1);
  EXPECT_EQ(workers.workers(0).worker_id(), "gpu-1");
  EXPECT_EQ(workers.workers(0).slots_size(), 2);
  EXPECT_TRUE(workers.workers(0).up());
  v1::DrainWorkerRequest drain;
  drain.set_worker_id("gpu-1");
  v1::DrainWorkerResponse drained;
  ASSERT_TRUE(cluster.client().DrainWorker(NewContext().get(), drain, &drained).ok());
  EXPECT_TRUE(drained.worker().draining());
  v1::UndrainWorkerRequest undrain;
  undrain.set_worker_id("gpu-1");
  v1::UndrainWorkerResponse undrained;
  ASSERT_TRUE(cluster.client().UndrainWorker(NewContext().get(), undrain, &undrained).ok());
  EXPECT_FALSE(undrained.worker().draining());
  drain.set_worker_id("nobody");
  EXPECT_EQ(cluster.client().DrainWorker(NewContext().get(), drain, &drained).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST(Methods, NotBuiltYetSayTheirName) {
  TestCluster cluster;
  v1::ExportJobResponse exported;
  grpc::Status status = cluster.client().ExportJob(NewContext().get(), {}, &exported);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("ExportJob"));
  v1::UploadFileResponse uploaded;
  const auto context = NewContext();
  auto writer = cluster.client().UploadFile(context.get(), &uploaded);
  writer->WritesDone();
  status = writer->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("UploadFile"));
}

TEST(Tokens, EveryCallNeedsTheRightOne) {
  TestCluster cluster([](rpc::RpcServerOptions* options) {
    options->training.token = rpc::BearerToken("client-secret");
    options->fleet.token = rpc::BearerToken("worker-secret");
  });
  const auto ask = [&](const std::string& token) {
    const auto context = NewContext();
    if (!token.empty()) context->AddMetadata("authorization", "Bearer " + token);
    v1::GetServerInfoResponse response;
    return cluster.client().GetServerInfo(context.get(), {}, &response);
  };
  EXPECT_EQ(ReasonOf(ask("")), "TOKEN_MISSING");
  EXPECT_EQ(ReasonOf(ask("guess")), "TOKEN_WRONG");
  EXPECT_EQ(ReasonOf(ask("worker-secret")), "TOKEN_WRONG");
  EXPECT_TRUE(ask("client-secret").ok());
  TestWorker worker(&cluster, "gpu-1");
  EXPECT_EQ(worker.Synchronize().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  const auto context = NewContext();
  auto reader = cluster.client().WatchJob(context.get(), {});
  v1::WatchJobResponse update;
  EXPECT_FALSE(reader->Read(&update));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

class Files : public ::testing::Test {
 protected:
  void SetUp() override {
    job_ = cluster_.Submit("request-1");
    std::filesystem::create_directories(std::filesystem::path(job_.folder()) / "adapter");
    content_.resize(700'001);
    for (size_t i = 0; i < content_.size(); ++i) content_[i] = static_cast<char>(i * 31 % 251);
    std::ofstream(std::filesystem::path(job_.folder()) / "adapter" / "weights.bin", std::ios::binary) << content_;
    std::ofstream(std::filesystem::path(job_.folder()) / "empty").flush();
    std::filesystem::create_symlink("/etc", std::filesystem::path(job_.folder()) / "link");
  }

  grpc::Status Download(const std::string& path, int64_t offset, std::string* data, std::string* sha256) {
    v1::DownloadFileRequest request;
    request.set_job_id(job_.job_id());
    request.set_path(path);
    request.set_offset(offset);
    const auto context = NewContext();
    auto reader = cluster_.client().DownloadFile(context.get(), request);
    v1::DownloadFileResponse part;
    while (reader->Read(&part)) {
      *data += part.data();
      *sha256 = part.sha256();
    }
    return reader->Finish();
  }

  TestCluster cluster_;
  v1::Job job_;
  std::string content_;
};

TEST_F(Files, AreListedWithoutLinks) {
  v1::ListFilesRequest request;
  request.set_job_id(job_.job_id());
  request.set_recursive(true);
  v1::ListFilesResponse response;
  ASSERT_TRUE(cluster_.client().ListFiles(NewContext().get(), request, &response).ok());
  std::vector<std::string> paths;
  for (const v1::FileInfo& file : response.files()) paths.push_back(file.path());
  EXPECT_EQ(paths, (std::vector<std::string>{"adapter", "adapter/weights.bin", "empty"}));
  EXPECT_EQ(response.files(1).size_bytes(), static_cast<int64_t>(content_.size()));
  request.set_folder("link");
  EXPECT_FALSE(cluster_.client().ListFiles(NewContext().get(), request, &response).ok());
}

TEST_F(Files, ComeWholeOrFromAnOffsetWithTheirHash) {
  std::string data;
  std::string sha256;
  ASSERT_TRUE(Download("adapter/weights.bin", 0, &data, &sha256).ok());
  EXPECT_EQ(data, content_);
  EXPECT_EQ(sha256, storage::Sha256Hex(content_));
  data.clear();
  ASSERT_TRUE(Download("adapter/weights.bin", 600'000, &data, &sha256).ok());
  EXPECT_EQ(data, content_.substr(600'000));
  EXPECT_EQ(sha256, storage::Sha256Hex(data));
  data.clear();
  ASSERT_TRUE(Download("empty", 0, &data, &sha256).ok());
  EXPECT_EQ(data, "");
  EXPECT_EQ(sha256, storage::Sha256Hex(""));
}

TEST_F(Files, NeverLeaveTheFolder) {
  std::string data;
  std::string sha256;
  for (const char* path : {"../secret", "/etc/passwd", "adapter/../../x", "", "a//b"}) {
    EXPECT_EQ(Download(path, 0, &data, &sha256).error_code(), grpc::StatusCode::INVALID_ARGUMENT) << path;
  }
  EXPECT_FALSE(Download("link/passwd", 0, &data, &sha256).ok());
  EXPECT_EQ(Download("link", 0, &data, &sha256).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Download("adapter", 0, &data, &sha256).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Download("missing", 0, &data, &sha256).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Download("empty", 1, &data, &sha256).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(data, "");
}

TEST(Checkpoints, OfAJobWithoutAnyAreNone) {
  TestCluster cluster;
  v1::ListCheckpointsRequest request;
  request.set_job_id(cluster.Submit("request-1").job_id());
  v1::ListCheckpointsResponse response;
  ASSERT_TRUE(cluster.client().ListCheckpoints(NewContext().get(), request, &response).ok());
  EXPECT_EQ(response.checkpoints_size(), 0);
}

TEST(RpcServer, RefusesPlainTextToOtherMachinesAndNamesABusyPort) {
  TestCluster cluster;
  rpc::Observer observer;
  rpc::RpcServerOptions options;
  options.listen = "0.0.0.0:0";
  options.storage = cluster.storage();
  EXPECT_THAT(std::string(rpc::RpcServer::Start(options, nullptr, &observer).status().message()),
              HasSubstr("--insecure"));
  options.tls.certificate = "/nothing.pem";
  EXPECT_FALSE(rpc::RpcServer::Start(options, nullptr, &observer).ok());
}

}  // namespace
}  // namespace longspan::testing
