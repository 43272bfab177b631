#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
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

TEST(Workers, MovedOnesAskTheirRanksToSaveAndStop) {
  TestCluster cluster;
  TestWorker worker(&cluster, "gpu-1");
  ASSERT_TRUE(worker.Synchronize().ok());
  const v1::Job job = cluster.Submit("request-1");
  worker.StartRank("prepare");
  worker.FinishRank();
  worker.StartRank("run");
  v1::DrainWorkerRequest drain;
  drain.set_worker_id("gpu-1");
  v1::DrainWorkerResponse drained;
  ASSERT_TRUE(cluster.client().DrainWorker(NewContext().get(), drain, &drained).ok());
  EXPECT_EQ(cluster.Get(job.job_id()).state(), v1::JOB_STATE_RUNNING) << "they end where they are";
  drain.set_move(true);
  ASSERT_TRUE(cluster.client().DrainWorker(NewContext().get(), drain, &drained).ok());
  EXPECT_EQ(cluster.Get(job.job_id()).state(), v1::JOB_STATE_PREEMPTING);
  EXPECT_EQ(cluster.Get(job.job_id()).reason(), "MOVE_REQUESTED");
}

grpc::Status UpdateQueue(TestCluster& cluster, const v1::Queue& queue, const std::vector<std::string>& mask,
                         v1::Queue* answer = nullptr) {
  v1::UpdateQueueRequest request;
  *request.mutable_queue() = queue;
  for (const std::string& path : mask) request.mutable_update_mask()->add_paths(path);
  v1::UpdateQueueResponse response;
  const grpc::Status status = cluster.client().UpdateQueue(NewContext().get(), request, &response);
  if (answer != nullptr) *answer = response.queue();
  return status;
}

std::vector<v1::Queue> Queues(TestCluster& cluster) {
  v1::ListQueuesResponse response;
  EXPECT_TRUE(cluster.client().ListQueues(NewContext().get(), {}, &response).ok());
  return {response.queues().begin(), response.queues().end()};
}

v1::Queue QueueOf(const std::string& name) {
  v1::Queue queue;
  queue.set_name(name);
  return queue;
}

TEST(Queues, AreMadeAndChangedByTheFieldAndStayOverARestart) {
  TestCluster cluster;
  EXPECT_TRUE(Queues(cluster).empty());
  v1::Queue queue = QueueOf("research");
  queue.set_weight(2.5);
  queue.set_slots_max(8);
  queue.set_queued_max(100);
  queue.mutable_run_time_default()->set_seconds(3600);
  v1::Queue answer;
  ASSERT_TRUE(UpdateQueue(cluster, queue, {}, &answer).ok());
  EXPECT_EQ(answer.weight(), 2.5);
  queue = QueueOf("research");
  queue.set_slots_max(4);
  queue.set_weight(-1);  // not asked for
  ASSERT_TRUE(UpdateQueue(cluster, queue, {"slots_max"}, &answer).ok());
  EXPECT_EQ(answer.slots_max(), 4);
  cluster.RestartServer();
  const std::vector<v1::Queue> queues = Queues(cluster);
  ASSERT_EQ(queues.size(), 1u);
  EXPECT_EQ(queues[0].name(), "research");
  EXPECT_EQ(queues[0].weight(), 2.5);
  EXPECT_EQ(queues[0].slots_max(), 4);
  EXPECT_EQ(queues[0].queued_max(), 100);
  EXPECT_EQ(queues[0].run_time_default().seconds(), 3600);
  EXPECT_EQ(queues[0].expected_share(), 0) << "it does nothing";
}

TEST(Queues, ShareByWeightAmongThoseThatDoSomething) {
  TestCluster cluster;
  v1::Queue heavy = QueueOf("heavy");
  heavy.set_weight(3);
  ASSERT_TRUE(UpdateQueue(cluster, heavy, {"weight"}).ok());
  ASSERT_TRUE(UpdateQueue(cluster, QueueOf("idle"), {"slots_max"}).ok());
  cluster.Submit("request-1");
  cluster.Submit("request-2", [](v1::JobSpec* spec) { spec->set_queue("heavy"); });
  const std::vector<v1::Queue> queues = Queues(cluster);
  ASSERT_EQ(queues.size(), 3u);
  EXPECT_EQ(queues[0].name(), "default");
  EXPECT_EQ(queues[0].queued(), 1);
  EXPECT_EQ(queues[0].expected_share(), 0.25);
  EXPECT_EQ(queues[1].expected_share(), 0.75);
  EXPECT_EQ(queues[2].expected_share(), 0);
  EXPECT_EQ(queues[2].weight(), 1);
}

TEST(Queues, EveryWrongFieldOfAChangeIsTold) {
  TestCluster cluster;
  v1::Queue queue = QueueOf("Not A Name");
  queue.set_slots_max(-1);
  queue.set_queued_max(int64_t{1} << 40);
  const grpc::Status status =
      UpdateQueue(cluster, queue, {"weight", "slots_max", "queued_max", "run_time_default", "used"});
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const StatusDetails details = DetailsOf(ToAbslStatus(status));
  EXPECT_EQ(details.violations.size(), 6u);
  for (const char* field :
       {"queue.name", "queue.weight", "queue.slots_max", "queue.queued_max", "queue.run_time_default", "update_mask"}) {
    EXPECT_THAT(details.violations, Contains(Field(&FieldViolation::field, field)));
  }
  for (const double weight : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    queue = QueueOf("fine");
    queue.set_weight(weight);
    EXPECT_EQ(UpdateQueue(cluster, queue, {"weight"}).error_code(), grpc::StatusCode::INVALID_ARGUMENT) << weight;
  }
  v1::UpdateQueueResponse response;
  EXPECT_EQ(cluster.client().UpdateQueue(NewContext().get(), {}, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(Queues(cluster).empty());
}

TEST(Queues, AFullOneRefusesWithItsName) {
  TestCluster cluster;
  v1::Queue small = QueueOf("small");
  small.set_queued_max(1);
  ASSERT_TRUE(UpdateQueue(cluster, small, {"queued_max"}).ok());
  const auto in_small = [](v1::JobSpec* spec) { spec->set_queue("small"); };
  cluster.Submit("request-1", in_small);
  v1::SubmitJobRequest request;
  request.set_request_id("request-2");
  *request.mutable_spec() = ValidSpec();
  in_small(request.mutable_spec());
  v1::SubmitJobResponse response;
  const grpc::Status status = cluster.client().SubmitJob(NewContext().get(), request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonOf(status), "QUEUE_FULL");
  EXPECT_EQ(DetailsOf(ToAbslStatus(status)).metadata.at("queue"), "small");
  EXPECT_THAT(status.error_message(), HasSubstr("queue small has 1 waiting jobs"));
  cluster.Submit("request-1", in_small);  // it was accepted
  cluster.Submit("request-3");
}

TEST(UpdateJob, ChangesAWaitingJobAsEveryoneSeesIt) {
  TestCluster cluster;
  const v1::Job job = cluster.Submit("request-1", [](v1::JobSpec* spec) {
    (*spec->mutable_labels())["team"] = "blue";
    (*spec->mutable_labels())["old"] = "yes";
  });
  v1::UpdateJobRequest request;
  request.set_job_id("extend");  // its name
  request.set_priority(70);
  (*request.mutable_labels())["team"] = "red";
  (*request.mutable_labels())["old"] = "";
  v1::UpdateJobResponse response;
  ASSERT_TRUE(cluster.client().UpdateJob(NewContext().get(), request, &response).ok());
  cluster.RestartServer();
  const v1::JobSpec spec = cluster.Get(job.job_id()).spec();
  EXPECT_EQ(spec.priority(), 70);
  EXPECT_EQ(spec.labels_size(), 1);
  EXPECT_EQ(spec.labels().at("team"), "red");
  v1::ListJobsRequest list;
  (*list.mutable_labels())["team"] = "red";
  v1::ListJobsResponse jobs;
  ASSERT_TRUE(cluster.client().ListJobs(NewContext().get(), list, &jobs).ok());
  EXPECT_EQ(jobs.jobs_size(), 1);
  // Nothing new is no change.
  const int64_t version = response.job().version();
  ASSERT_TRUE(cluster.client().UpdateJob(NewContext().get(), request, &response).ok());
  EXPECT_EQ(response.job().version(), version);
}

TEST(UpdateJob, SaysWhatIsWrong) {
  TestCluster cluster;
  const v1::Job job = cluster.Submit("request-1");
  const auto update = [&](const v1::UpdateJobRequest& request) {
    v1::UpdateJobResponse response;
    return cluster.client().UpdateJob(NewContext().get(), request, &response);
  };
  v1::UpdateJobRequest request;
  request.set_priority(101);
  (*request.mutable_labels())["-bad"] = "x";
  const grpc::Status wrong = update(request);
  EXPECT_EQ(wrong.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  for (const char* field : {"job_id", "priority", "labels"}) {
    EXPECT_THAT(DetailsOf(ToAbslStatus(wrong)).violations, Contains(Field(&FieldViolation::field, field)));
  }
  request.Clear();
  request.set_job_id(job.job_id());
  EXPECT_EQ(update(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT) << "nothing to change";
  for (int i = 0; i < 64; ++i) (*request.mutable_labels())["l" + std::to_string(i)] = "x";
  EXPECT_TRUE(update(request).ok());
  request.clear_labels();
  (*request.mutable_labels())["one-more"] = "x";
  EXPECT_EQ(update(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT) << "65 labels";
  v1::CancelJobRequest cancel;
  cancel.set_job_id(job.job_id());
  v1::CancelJobResponse cancelled;
  ASSERT_TRUE(cluster.client().CancelJob(NewContext().get(), cancel, &cancelled).ok());
  EXPECT_EQ(update(request).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
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
  v1::UpdateQueueResponse queue;
  EXPECT_EQ(ReasonOf(cluster.client().UpdateQueue(NewContext().get(), {}, &queue)), "TOKEN_MISSING");
  v1::UpdateJobResponse job;
  EXPECT_EQ(ReasonOf(cluster.client().UpdateJob(NewContext().get(), {}, &job)), "TOKEN_MISSING");
  v1::ListQueuesResponse queues;
  EXPECT_EQ(ReasonOf(cluster.client().ListQueues(NewContext().get(), {}, &queues)), "TOKEN_MISSING");
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
