#include "server/http/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <nlohmann/json.hpp>

#include "server/http/pages.h"
#include "tests/server/rpc/test_cluster.h"

namespace longspan::http {
namespace {

using longspan::testing::TestCluster;
using longspan::testing::TestWorker;
using ::testing::HasSubstr;
using ::testing::Not;

class HttpTest : public ::testing::Test {
 protected:
  void Start(HttpServerOptions options = {}) {
    auto server = HttpServer::Start(std::move(options), &metrics_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    client_ = std::make_unique<httplib::Client>("127.0.0.1", server_->port());
  }
  httplib::Response Get(const std::string& path, const httplib::Headers& headers = {}) {
    const httplib::Result result = client_->Get(path.c_str(), headers);
    if (!result) throw std::runtime_error("no answer to " + path);
    return *result;
  }

  TestCluster cluster_;
  ServerMetrics metrics_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<httplib::Client> client_;
};

TEST_F(HttpTest, IsAliveBeforeItIsReady) {
  Start();
  EXPECT_EQ(Get("/healthz").status, 200);
  EXPECT_EQ(Get("/readyz").status, 503);
  EXPECT_THAT(Get("/metrics").body, HasSubstr("longspan_coordinator_up 0"));
  server_->Serve(&cluster_.server().coordinator());
  EXPECT_EQ(Get("/readyz").status, 200);
  EXPECT_EQ(Get("/nothing").status, 404);
}

TEST_F(HttpTest, MetricsShowJobsWorkersAndQueues) {
  Start();
  server_->Serve(&cluster_.server().coordinator());
  TestWorker worker(&cluster_, "gpu-1", 2);
  ASSERT_TRUE(worker.Synchronize().ok());
  const v1::Job job = cluster_.Submit("request-1", [](v1::JobSpec* spec) { spec->mutable_resources()->set_slots(8); });
  worker.StartRank("prepare");
  worker.FinishRank();
  const std::string text = Get("/metrics").body;
  EXPECT_THAT(text, HasSubstr("longspan_jobs{state=\"QUEUED\"} 1"));
  EXPECT_THAT(text, HasSubstr("longspan_queue_depth{queue=\"default\"} 1"));
  EXPECT_THAT(text, HasSubstr("longspan_worker_up{worker=\"gpu-1\"} 1"));
  EXPECT_THAT(text, HasSubstr("longspan_slots{state=\"free\",worker=\"gpu-1\"} 2"));
  EXPECT_THAT(text, HasSubstr("longspan_worker_lease_age_seconds{worker=\"gpu-1\"}"));
  EXPECT_THAT(text, HasSubstr("job_id=\"" + job.job_id() + "\""));
  EXPECT_THAT(text, HasSubstr("method=\"longlora\""));
  EXPECT_THAT(text, HasSubstr("longspan_coordinator_up 1"));
  EXPECT_THAT(text, HasSubstr("longspan_scheduler_unschedulable{reason=\"gang_exceeds_cluster\"} 1"));
  EXPECT_THAT(text, HasSubstr("longspan_scheduler_unschedulable{reason=\"backing_off\"} 0"));
  EXPECT_THAT(text, HasSubstr("longspan_queue_slots{queue=\"default\"} 0"));
}

TEST_F(HttpTest, MetricsOfQueuesSayWhatTheyHoldAndMayHold) {
  ClusterSnapshot snapshot;
  core::QueueView research;
  research.queue.name = "research";
  research.queue.weight = 3;
  research.queue.slots_max = 8;
  research.slots_held = 5;
  research.waiting = 2;
  research.used_share = 0.25;
  research.expected_share = 0.75;
  snapshot.queues = {research};
  snapshot.now = absl::FromUnixSeconds(100);
  core::JobView waiting;
  waiting.job.queue = "research";
  waiting.job.submit_time = absl::FromUnixSeconds(40);
  snapshot.jobs = {waiting};
  snapshot.counters.preemptions = 7;
  snapshot.counters.resizes = 9;
  const std::string text = metrics_.Render(snapshot);
  EXPECT_THAT(text, HasSubstr("longspan_queue_depth{queue=\"research\"} 2"));
  EXPECT_THAT(text, HasSubstr("longspan_queue_oldest_seconds{queue=\"research\"} 60"));
  EXPECT_THAT(text, HasSubstr("longspan_queue_slots{queue=\"research\"} 5"));
  EXPECT_THAT(text, HasSubstr("longspan_queue_slots_max{queue=\"research\"} 8"));
  EXPECT_THAT(text, HasSubstr("longspan_queue_weight{queue=\"research\"} 3"));
  EXPECT_THAT(text, HasSubstr("longspan_queue_used_share_ratio{queue=\"research\"} 0.25"));
  EXPECT_THAT(text, HasSubstr("longspan_queue_expected_share_ratio{queue=\"research\"} 0.75"));
  EXPECT_THAT(text, HasSubstr("longspan_queue_depth{queue=\"default\"} 0"));
  EXPECT_THAT(text, HasSubstr("longspan_preemptions_total 7"));
  EXPECT_THAT(text, HasSubstr("longspan_resizes_total 9"));
}

TEST_F(HttpTest, EventsAreCounted) {
  core::Transaction transaction;
  core::JobWrite inserted;
  inserted.job.id = JobId("job-1");
  inserted.job.submit_time = absl::FromUnixSeconds(100);
  core::JobWrite placed = inserted;
  placed.expected_version = 1;
  placed.job.state = core::JobState::kStarting;
  core::Attempt attempt;
  attempt.job_id = JobId("job-1");
  attempt.number = 1;
  attempt.start_time = absl::FromUnixSeconds(103);
  core::JobWrite ended = placed;
  ended.expected_state = core::JobState::kRunning;
  ended.job.state = core::JobState::kSucceeded;
  ended.job.start_time = absl::FromUnixSeconds(110);
  ended.job.end_time = absl::FromUnixSeconds(150);
  transaction.jobs = {inserted, placed, ended};
  transaction.attempts = {attempt};
  metrics_.Committed(transaction, absl::Milliseconds(3));
  metrics_.SchedulerPassed(absl::Milliseconds(1));
  metrics_.CallEnded("GetJob", "NOT_FOUND", absl::Milliseconds(2));
  const std::string text = metrics_.Render(absl::UnavailableError("no core"));
  EXPECT_THAT(text, HasSubstr("longspan_job_transitions_total{from=\"NONE\",to=\"QUEUED\"} 1"));
  EXPECT_THAT(text, HasSubstr("longspan_job_transitions_total{from=\"RUNNING\",to=\"SUCCEEDED\"} 1"));
  EXPECT_THAT(text, HasSubstr("longspan_job_queue_wait_seconds_sum 3"));
  EXPECT_THAT(text, HasSubstr("longspan_job_run_duration_seconds_sum{outcome=\"succeeded\"} 40"));
  EXPECT_THAT(text, HasSubstr("longspan_store_commit_seconds_count 1"));
  EXPECT_THAT(text, HasSubstr("longspan_grpc_server_handled_total{grpc_code=\"NOT_FOUND\",grpc_method=\"GetJob\"} 1"));
}

TEST_F(HttpTest, TargetsNameEveryWorkerWithAnHttpPort) {
  Start();
  server_->Serve(&cluster_.server().coordinator());
  EXPECT_EQ(Get("/targets").body, "[]");
  TestWorker worker(&cluster_, "gpu-1");
  (*worker.state().mutable_labels())["rack.name"] = "r7";
  ASSERT_TRUE(worker.Synchronize().ok());
  TestWorker silent(&cluster_, "gpu-2");
  silent.state().set_http_port(0);
  ASSERT_TRUE(silent.Synchronize().ok());
  const nlohmann::json targets = nlohmann::json::parse(Get("/targets").body);
  ASSERT_EQ(targets.size(), 1u);
  EXPECT_EQ(targets[0]["targets"][0], "10.0.0.7:9001");
  EXPECT_EQ(targets[0]["labels"]["worker"], "gpu-1");
  EXPECT_EQ(targets[0]["labels"]["__meta_longspan_label_rack_name"], "r7");
}

TEST_F(HttpTest, TheStatusPageWantsTheTokenAndEscapesText) {
  HttpServerOptions options;
  options.token = rpc::BearerToken("secret");
  Start(options);
  server_->Serve(&cluster_.server().coordinator());
  TestWorker worker(&cluster_, "<script>alert(1)</script>");
  ASSERT_TRUE(worker.Synchronize().ok());
  cluster_.Submit("request-1");
  EXPECT_EQ(Get("/").status, 401);
  EXPECT_EQ(Get("/", {{"Authorization", "Bearer wrong"}}).status, 401);
  EXPECT_EQ(Get("/metrics").status, 200);
  const httplib::Response page = Get("/", {{"Authorization", "Bearer secret"}});
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.body, HasSubstr("extend"));
  EXPECT_THAT(page.body, HasSubstr("&lt;script&gt;alert(1)"));
  EXPECT_THAT(page.body, Not(HasSubstr("<script>")));
}

TEST_F(HttpTest, ABusyPortAndAnOpenAddressAreClearErrors) {
  Start();
  HttpServerOptions busy;
  busy.listen = "127.0.0.1:" + std::to_string(server_->port());
  EXPECT_THAT(std::string(HttpServer::Start(busy, &metrics_).status().message()), HasSubstr(busy.listen));
  HttpServerOptions open;
  open.listen = "0.0.0.0:0";
  EXPECT_THAT(std::string(HttpServer::Start(open, &metrics_).status().message()), HasSubstr("--insecure"));
  open.listen = "nonsense";
  EXPECT_FALSE(HttpServer::Start(open, &metrics_).ok());
}

}  // namespace
}  // namespace longspan::http
