#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <future>
#include <sstream>
#include <thread>

#include "tests/server/rpc/test_cluster.h"

namespace longspan::testing {
namespace {

using ::testing::HasSubstr;

// A hold so long that a test which needs its end would fail.
void HoldForEver(rpc::RpcServerOptions* options) {
  options->fleet.hold = std::chrono::minutes(10);
  options->fleet.answer_timeout = std::chrono::minutes(10);
}

// A Synchronize under way on another thread.
class HeldCall {
 public:
  HeldCall(TestCluster* cluster, const v1::SynchronizeRequest& request)
      : context_(NewContext()), call_(std::async(std::launch::async, [this, cluster, request] {
          return cluster->fleet().Synchronize(context_.get(), request, &response_);
        })) {}

  bool ended() const { return call_.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }
  grpc::Status Wait() { return call_.get(); }
  void Cancel() { context_->TryCancel(); }
  const v1::SynchronizeResponse& response() const { return response_; }

 private:
  std::unique_ptr<grpc::ClientContext> context_;
  v1::SynchronizeResponse response_;
  std::future<grpc::Status> call_;
};

// Until the server holds so many calls. The bound is only reached by a failing test.
void WaitForHeld(TestCluster* cluster, size_t count) {
  const auto deadline = std::chrono::steady_clock::now() + kTestTimeout;
  while (cluster->server().fleet().held_calls() != count && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  ASSERT_EQ(cluster->server().fleet().held_calls(), count);
}

TEST(Synchronize, TheFirstCallIsAnsweredAtOnceWithTheLease) {
  TestCluster cluster(HoldForEver);
  TestWorker worker(&cluster, "w");
  v1::SynchronizeResponse response;
  ASSERT_TRUE(worker.Synchronize(&response).ok());
  EXPECT_EQ(response.desired_ranks_size(), 0);
  EXPECT_NE(response.desired_fingerprint(), "");
  EXPECT_EQ(response.lease().seconds(), 60);
}

TEST(Synchronize, IsHeldAWhileWhenNothingChanges) {
  TestCluster cluster([](rpc::RpcServerOptions* options) { options->fleet.hold = std::chrono::milliseconds(300); });
  TestWorker worker(&cluster, "w");
  ASSERT_TRUE(worker.Synchronize().ok());
  const auto start = std::chrono::steady_clock::now();
  v1::SynchronizeResponse response;
  ASSERT_TRUE(worker.Synchronize(&response).ok());
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(290));
  EXPECT_EQ(response.desired_fingerprint(), worker.state().desired_fingerprint());
}

TEST(Synchronize, AHeldCallEndsWhenAJobIsPlaced) {
  TestCluster cluster(HoldForEver);
  TestWorker worker(&cluster, "w");
  ASSERT_TRUE(worker.Synchronize().ok());
  HeldCall held(&cluster, worker.NextReport());
  WaitForHeld(&cluster, 1);
  const v1::Job job = cluster.Submit("request-1");
  ASSERT_TRUE(held.Wait().ok());
  ASSERT_EQ(held.response().desired_ranks_size(), 1);
  EXPECT_EQ(held.response().desired_ranks(0).job_id(), job.job_id());
  EXPECT_EQ(held.response().desired_ranks(0).command(), "prepare");
  EXPECT_EQ(held.response().desired_ranks(0).folder(), job.folder());
}

TEST(Synchronize, ANewerCallEndsTheHeldOne) {
  TestCluster cluster(HoldForEver);
  TestWorker worker(&cluster, "w");
  ASSERT_TRUE(worker.Synchronize().ok());
  HeldCall first(&cluster, worker.NextReport());
  WaitForHeld(&cluster, 1);
  HeldCall second(&cluster, worker.NextReport());
  EXPECT_TRUE(first.Wait().ok());
  WaitForHeld(&cluster, 1);
  EXPECT_FALSE(second.ended());
  second.Cancel();
  EXPECT_EQ(second.Wait().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(Synchronize, AnOldReportIsRefused) {
  TestCluster cluster;
  TestWorker worker(&cluster, "w");
  const v1::SynchronizeRequest old = worker.NextReport();
  ASSERT_TRUE(worker.Synchronize().ok());
  v1::SynchronizeResponse response;
  EXPECT_EQ(cluster.fleet().Synchronize(NewContext().get(), old, &response).error_code(), grpc::StatusCode::ABORTED);
  v1::SynchronizeRequest nameless = worker.NextReport();
  nameless.clear_worker_id();
  EXPECT_EQ(cluster.fleet().Synchronize(NewContext().get(), nameless, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(Synchronize, StoppingTheServerEndsHeldCallsAtOnce) {
  TestCluster cluster(HoldForEver);
  TestWorker worker(&cluster, "w");
  ASSERT_TRUE(worker.Synchronize().ok());
  HeldCall held(&cluster, worker.NextReport());
  WaitForHeld(&cluster, 1);
  const auto start = std::chrono::steady_clock::now();
  cluster.StopServer();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  held.Wait();
}

TEST(Synchronize, AJobGoesThroughPrepareAndTraining) {
  TestCluster cluster;
  TestWorker worker(&cluster, "w");
  ASSERT_TRUE(worker.Synchronize().ok());
  const v1::Job job = cluster.Submit("request-1");
  EXPECT_EQ(worker.StartRank("prepare").slot(), -1);
  worker.FinishRank();
  const v1::DesiredRank rank = worker.StartRank("run");
  EXPECT_EQ(rank.slot(), 0);
  EXPECT_EQ(rank.world_size(), 1);
  EXPECT_EQ(cluster.Get(job.job_id()).state(), v1::JOB_STATE_RUNNING);
  v1::RankReport* report = worker.state().mutable_ranks(0);
  v1::ProgressSample* sample = report->add_samples();
  sample->set_sequence(1);
  sample->set_phase(v1::PHASE_TRAIN);
  sample->set_step(10);
  sample->set_steps(1000);
  (*sample->mutable_values())["loss"] = 2.5;
  v1::CheckpointRecord* checkpoint = report->add_checkpoints();
  checkpoint->set_name("step-10");
  checkpoint->set_step(10);
  checkpoint->set_manifest_sha256("0123");
  v1::SynchronizeResponse response;
  ASSERT_TRUE(worker.Synchronize(&response).ok());
  ASSERT_EQ(response.acknowledged_size(), 1);
  EXPECT_EQ(response.acknowledged(0).sample_sequence(), 1);
  EXPECT_THAT(response.acknowledged(0).checkpoints(), ::testing::ElementsAre("step-10"));
  v1::Job running = cluster.Get(job.job_id());
  EXPECT_EQ(running.progress().step(), 10);
  EXPECT_EQ(running.latest_checkpoint().name(), "step-10");
  EXPECT_EQ(running.attempts_size(), 2);
  worker.FinishRank();
  EXPECT_EQ(cluster.Get(job.job_id()).state(), v1::JOB_STATE_SUCCEEDED);
}

class Logs : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(worker_.Synchronize().ok());
    job_ = cluster_.Submit("request-1");
    rank_ = worker_.StartRank("prepare");
  }

  v1::UploadLogsRequest Part(int64_t offset, const std::string& data) {
    v1::UploadLogsRequest request;
    request.set_worker_id("w");
    request.set_job_id(job_.job_id());
    request.set_attempt(rank_.attempt());
    request.set_rank(0);
    request.set_offset(offset);
    request.set_data(data);
    return request;
  }

  grpc::Status Upload(const std::vector<v1::UploadLogsRequest>& parts, int64_t* stored) {
    const auto context = NewContext();
    v1::UploadLogsResponse response;
    auto writer = cluster_.fleet().UploadLogs(context.get(), &response);
    for (const v1::UploadLogsRequest& part : parts) {
      if (!writer->Write(part)) break;
    }
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    *stored = response.stored_bytes();
    return status;
  }

  std::string Stored() {
    std::ifstream file(std::filesystem::path(job_.folder()) / "logs" / "attempt-1" / "rank-0.log");
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }

  TestCluster cluster_{[](rpc::RpcServerOptions* options) { options->logs.bytes_max = 20; }};
  TestWorker worker_{&cluster_, "w"};
  v1::Job job_;
  v1::DesiredRank rank_;
};

TEST_F(Logs, ResumeWhereTheyEndedAndSkipWhatIsStored) {
  int64_t stored = 0;
  ASSERT_TRUE(Upload({Part(0, "one\n"), Part(4, "two\n")}, &stored).ok());
  EXPECT_EQ(stored, 8);
  ASSERT_TRUE(Upload({Part(4, "two\nthree\n")}, &stored).ok());
  EXPECT_EQ(stored, 14);
  EXPECT_EQ(Stored(), "one\ntwo\nthree\n");
}

TEST_F(Logs, AGapIsAnsweredWithWhatIsStored) {
  int64_t stored = 0;
  ASSERT_TRUE(Upload({Part(0, "one\n")}, &stored).ok());
  ASSERT_TRUE(Upload({Part(100, "later\n")}, &stored).ok());
  EXPECT_EQ(stored, 4);
  EXPECT_EQ(Stored(), "one\n");
}

TEST_F(Logs, EndWithAMarkerAtTheirLimitAndTheRestIsAcknowledged) {
  int64_t stored = 0;
  ASSERT_TRUE(Upload({Part(0, std::string(15, 'a')), Part(15, std::string(15, 'b')), Part(30, "more")}, &stored).ok());
  EXPECT_EQ(Stored().substr(0, 20), std::string(15, 'a') + std::string(5, 'b'));
  EXPECT_THAT(Stored(), HasSubstr("limit of 20 bytes"));
  ASSERT_TRUE(Upload({Part(500, "more")}, &stored).ok());
  EXPECT_EQ(stored, 504);
}

TEST_F(Logs, OfAnotherJobAttemptOrWorkerAreRefused) {
  int64_t stored = 0;
  v1::UploadLogsRequest part = Part(0, "x");
  part.set_job_id("job-unknown");
  EXPECT_EQ(Upload({part}, &stored).error_code(), grpc::StatusCode::NOT_FOUND);
  part = Part(0, "x");
  part.set_job_id("../../etc");
  EXPECT_EQ(Upload({part}, &stored).error_code(), grpc::StatusCode::NOT_FOUND);
  part = Part(0, "x");
  part.set_attempt(7);
  EXPECT_EQ(Upload({part}, &stored).error_code(), grpc::StatusCode::NOT_FOUND);
  part = Part(0, "x");
  part.set_worker_id("other");
  EXPECT_EQ(Upload({part}, &stored).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Stored(), "");
}

}  // namespace
}  // namespace longspan::testing
