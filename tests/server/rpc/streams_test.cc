#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "proto/support/status.h"
#include "tests/server/rpc/test_cluster.h"

namespace longspan::testing {
namespace {

using ::testing::ElementsAre;

struct Watch {
  std::unique_ptr<grpc::ClientContext> context = NewContext();
  std::unique_ptr<grpc::ClientReader<v1::WatchJobResponse>> reader;
};

Watch StartWatch(TestCluster* cluster, const std::string& job_id, int64_t after_event = 0, int64_t after_progress = 0) {
  v1::WatchJobRequest request;
  request.set_job_id(job_id);
  request.set_after_event(after_event);
  request.set_after_progress(after_progress);
  Watch watch;
  watch.reader = cluster->client().WatchJob(watch.context.get(), request);
  return watch;
}

void Cancel(TestCluster* cluster, const std::string& job_id) {
  v1::CancelJobRequest request;
  request.set_job_id(job_id);
  v1::CancelJobResponse response;
  ASSERT_TRUE(cluster->client().CancelJob(NewContext().get(), request, &response).ok());
}

// A job in training with a worker that can report samples.
struct RunningJob {
  RunningJob(TestCluster* cluster) : worker(cluster, "w") {
    EXPECT_TRUE(worker.Synchronize().ok());
    job = cluster->Submit("request-1");
    worker.StartRank("prepare");
    worker.FinishRank();
    rank = worker.StartRank("run");
  }
  // Reports `count` samples, each with `values` numbers.
  void Report(int count, int values = 1) {
    for (int i = 0; i < count; ++i) {
      v1::ProgressSample* sample = worker.state().mutable_ranks(0)->add_samples();
      sample->set_sequence(++sequence);
      sample->set_phase(v1::PHASE_TRAIN);
      sample->set_step(sequence);
      sample->set_steps(100'000);
      for (int v = 0; v < values; ++v) (*sample->mutable_values())["value_" + std::to_string(v)] = v;
    }
    ASSERT_TRUE(worker.Synchronize().ok());
  }
  TestWorker worker;
  v1::Job job;
  v1::DesiredRank rank;
  int64_t sequence = 0;
};

TEST(WatchJob, SendsTheJobThenWhatHappensThenTheJobAgain) {
  TestCluster cluster;
  const std::string job_id = cluster.Submit("request-1").job_id();
  Watch watch = StartWatch(&cluster, job_id);
  v1::WatchJobResponse update;
  ASSERT_TRUE(watch.reader->Read(&update));
  EXPECT_EQ(update.job().state(), v1::JOB_STATE_QUEUED);
  ASSERT_TRUE(watch.reader->Read(&update));
  EXPECT_EQ(update.event().sequence(), 1);
  EXPECT_EQ(update.event().reason(), "JOB_SUBMITTED");
  Cancel(&cluster, job_id);
  int64_t last_event = 1;
  while (watch.reader->Read(&update) && update.has_event()) EXPECT_EQ(update.event().sequence(), ++last_event);
  EXPECT_EQ(update.job().state(), v1::JOB_STATE_CANCELLED);
  EXPECT_FALSE(watch.reader->Read(&update));
  EXPECT_TRUE(watch.reader->Finish().ok());
}

TEST(WatchJob, ResumesAfterTheSequencesTheClientHas) {
  TestCluster cluster;
  RunningJob running(&cluster);
  running.Report(5);
  Cancel(&cluster, running.job.job_id());
  ASSERT_TRUE(running.worker.SynchronizeUntil([](const v1::SynchronizeResponse& response) {
    return response.desired_ranks_size() == 0 || response.desired_ranks(0).action() == v1::DesiredRank::ACTION_STOP;
  }));
  running.worker.FinishRank();
  std::vector<int64_t> events;
  std::vector<int64_t> samples;
  const auto collect = [&](int64_t after_event, int64_t after_progress) {
    events.clear();
    samples.clear();
    Watch watch = StartWatch(&cluster, running.job.job_id(), after_event, after_progress);
    v1::WatchJobResponse update;
    while (watch.reader->Read(&update)) {
      if (update.has_event()) events.push_back(update.event().sequence());
      if (update.has_progress()) samples.push_back(update.progress().sequence());
    }
    EXPECT_TRUE(watch.reader->Finish().ok());
  };
  collect(0, 0);
  const std::vector<int64_t> all_events = events;
  ASSERT_GE(all_events.size(), 5u);
  EXPECT_THAT(samples, ElementsAre(1, 2, 3, 4, 5));
  collect(3, 4);
  EXPECT_EQ(events, std::vector<int64_t>(all_events.begin() + 3, all_events.end()));
  EXPECT_THAT(samples, ElementsAre(5));
}

TEST(WatchJob, FollowsAcrossARestartOfTheServerWithItsCursor) {
  TestCluster cluster;
  RunningJob running(&cluster);
  running.Report(3);
  Watch watch = StartWatch(&cluster, running.job.job_id());
  v1::WatchJobResponse update;
  int64_t after_event = 0;
  int64_t after_progress = 0;
  while (after_progress < 3 && watch.reader->Read(&update)) {
    if (update.has_event()) after_event = update.event().sequence();
    if (update.has_progress()) after_progress = update.progress().sequence();
  }
  cluster.RestartServer();
  while (watch.reader->Read(&update)) continue;
  EXPECT_EQ(watch.reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  Watch again = StartWatch(&cluster, running.job.job_id(), after_event, after_progress);
  ASSERT_TRUE(again.reader->Read(&update));
  EXPECT_EQ(update.job().state(), v1::JOB_STATE_RUNNING);
  running.Report(1);
  while (again.reader->Read(&update) && !update.has_progress()) continue;
  EXPECT_EQ(update.progress().sequence(), 4);
  again.context->TryCancel();
}

TEST(WatchJob, OfAnUnknownJobIsNotFound) {
  TestCluster cluster;
  Watch watch = StartWatch(&cluster, "nothing");
  v1::WatchJobResponse update;
  EXPECT_FALSE(watch.reader->Read(&update));
  EXPECT_EQ(watch.reader->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(WatchJob, AReaderThatDoesNotReadIsSentAwayWithACursor) {
  TestCluster cluster(
      [](rpc::RpcServerOptions* options) { options->training.streams.stall_limit = std::chrono::milliseconds(500); });
  RunningJob running(&cluster);
  // A small window, so that few messages fill it.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto client = v1::TrainingService::NewStub(grpc::CreateCustomChannel(
      "127.0.0.1:" + std::to_string(cluster.server().port()), grpc::InsecureChannelCredentials(), arguments));
  v1::WatchJobRequest request;
  request.set_job_id(running.job.job_id());
  const auto context = NewContext();
  const auto reader = client->WatchJob(context.get(), request);
  v1::WatchJobResponse update;
  ASSERT_TRUE(reader->Read(&update));
  for (int i = 0; i < 20; ++i) running.Report(100, 20);
  // The server gives up on the stream without any help of the reader; then what was under way can still be read.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(2500);
  while (std::chrono::steady_clock::now() < deadline) running.Report(1);
  int64_t last_read = 0;
  while (reader->Read(&update)) {
    if (update.has_progress()) last_read = update.progress().sequence();
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  const StatusDetails details = DetailsOf(ToAbslStatus(status));
  EXPECT_EQ(details.reason, "READER_TOO_SLOW");
  // The cursor never claims more than the reader got, so that going on from it misses nothing.
  EXPECT_LE(std::stoll(details.metadata.at("after_progress")), last_read);
  EXPECT_LT(last_read, running.sequence);
}

TEST(Stop, IsQuickWithOpenStreams) {
  TestCluster cluster;
  const std::string job_id = cluster.Submit("request-1").job_id();
  std::vector<Watch> watches;
  for (int i = 0; i < 5; ++i) watches.push_back(StartWatch(&cluster, job_id));
  v1::WatchJobResponse update;
  for (Watch& watch : watches) ASSERT_TRUE(watch.reader->Read(&update));
  const auto start = std::chrono::steady_clock::now();
  cluster.StopServer();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  for (Watch& watch : watches) {
    while (watch.reader->Read(&update)) continue;
    EXPECT_EQ(watch.reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  }
}

class LogStreams : public ::testing::Test {
 protected:
  void Upload(int64_t offset, const std::string& data) {
    v1::UploadLogsRequest part;
    part.set_worker_id("w");
    part.set_job_id(running_.job.job_id());
    part.set_attempt(running_.rank.attempt());
    part.set_offset(offset);
    part.set_data(data);
    const auto context = NewContext();
    v1::UploadLogsResponse response;
    auto writer = cluster_.fleet().UploadLogs(context.get(), &response);
    writer->Write(part);
    writer->WritesDone();
    ASSERT_TRUE(writer->Finish().ok());
  }

  v1::StreamLogsRequest Request(bool follow) {
    v1::StreamLogsRequest request;
    request.set_job_id(running_.job.job_id());
    request.set_follow(follow);
    return request;
  }

  TestCluster cluster_{
      [](rpc::RpcServerOptions* options) { options->training.streams.log_linger = std::chrono::milliseconds(100); }};
  RunningJob running_{&cluster_};
};

TEST_F(LogStreams, GiveWhatIsThereFromAnOffset) {
  Upload(0, "one\ntwo\n");
  v1::StreamLogsRequest request = Request(false);
  request.set_offset(4);
  const auto context = NewContext();
  auto reader = cluster_.client().StreamLogs(context.get(), request);
  v1::StreamLogsResponse part;
  ASSERT_TRUE(reader->Read(&part));
  EXPECT_EQ(part.data(), "two\n");
  EXPECT_EQ(part.next_offset(), 8);
  EXPECT_FALSE(reader->Read(&part));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(LogStreams, FollowUntilTheAttemptHasEnded) {
  const auto context = NewContext();
  auto reader = cluster_.client().StreamLogs(context.get(), Request(true));
  Upload(0, "one\n");
  v1::StreamLogsResponse part;
  ASSERT_TRUE(reader->Read(&part));
  EXPECT_EQ(part.data(), "one\n");
  Upload(4, "two\n");
  ASSERT_TRUE(reader->Read(&part));
  EXPECT_EQ(part.data(), "two\n");
  running_.worker.FinishRank();
  EXPECT_FALSE(reader->Read(&part));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(LogStreams, OfAnUnknownAttemptOrRankAreNotFound) {
  v1::StreamLogsRequest request = Request(true);
  request.set_attempt(9);
  v1::StreamLogsResponse part;
  {
    const auto context = NewContext();
    auto reader = cluster_.client().StreamLogs(context.get(), request);
    EXPECT_FALSE(reader->Read(&part));
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
  }
  request = Request(true);
  request.set_rank(3);
  const auto context = NewContext();
  auto reader = cluster_.client().StreamLogs(context.get(), request);
  EXPECT_FALSE(reader->Read(&part));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace longspan::testing
