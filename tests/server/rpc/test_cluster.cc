#include "tests/server/rpc/test_cluster.h"

#include "proto/support/check.h"
#include "server/store/sqlite_store.h"

namespace longspan::testing {

std::unique_ptr<grpc::ClientContext> NewContext() {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + kTestTimeout);
  return context;
}

TestCluster::TestCluster(const std::function<void(rpc::RpcServerOptions*)>& adjust) : adjust_(adjust) { StartServer(); }
TestCluster::~TestCluster() { StopServer(); }

void TestCluster::StartServer() {
  auto store = store::OpenSqliteStore((folder_.path() / "data" / "longspan.db").string());
  CHECK(store.ok()) << store.status();
  store_ = *std::move(store);
  rpc::RpcServerOptions options;
  options.storage = storage();
  options.coordinator.core.jobs_folder = (storage() / "jobs").string();
  options.training.version = "test";
  options.fleet.hold = std::chrono::milliseconds(200);
  options.stop_deadline = std::chrono::seconds(2);
  if (adjust_) adjust_(&options);
  auto server = rpc::RpcServer::Start(options, store_.get(), &observer_);
  CHECK(server.ok()) << server.status();
  server_ = *std::move(server);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  channel_ = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                       grpc::InsecureChannelCredentials(), arguments);
  client_ = v1::TrainingService::NewStub(channel_);
  fleet_ = v1::FleetService::NewStub(channel_);
}

void TestCluster::StopServer() {
  if (server_ != nullptr) server_->Stop();
}

void TestCluster::RestartServer() {
  StopServer();
  server_.reset();
  store_.reset();
  StartServer();
}

v1::JobSpec ValidSpec() {
  v1::JobSpec spec;
  spec.set_name("extend");
  spec.set_context_length(1024);
  spec.mutable_model()->set_path("/shared/models/tiny");
  spec.mutable_data()->add_sources("/shared/data/corpus.txt");
  return spec;
}

v1::Job TestCluster::Submit(const std::string& request_id, const std::function<void(v1::JobSpec*)>& adjust) {
  v1::SubmitJobRequest request;
  request.set_request_id(request_id);
  *request.mutable_spec() = ValidSpec();
  if (adjust) adjust(request.mutable_spec());
  v1::SubmitJobResponse response;
  const grpc::Status status = client_->SubmitJob(NewContext().get(), request, &response);
  CHECK(status.ok()) << status.error_message();
  return response.job();
}

v1::Job TestCluster::Get(const std::string& job_id) {
  v1::GetJobRequest request;
  request.set_job_id(job_id);
  v1::GetJobResponse response;
  const grpc::Status status = client_->GetJob(NewContext().get(), request, &response);
  CHECK(status.ok()) << status.error_message();
  return response.job();
}

TestWorker::TestWorker(TestCluster* cluster, std::string worker_id, int slots) : cluster_(cluster) {
  state_.set_worker_id(std::move(worker_id));
  state_.set_incarnation_id("first");
  state_.set_advertise_address("10.0.0.7");
  state_.set_http_port(9001);
  for (int i = 0; i < slots; ++i) {
    v1::Slot* slot = state_.add_slots();
    slot->set_index(i);
    slot->set_device("cpu");
  }
}

v1::SynchronizeRequest TestWorker::NextReport() {
  state_.set_sequence(state_.sequence() + 1);
  return state_;
}

grpc::Status TestWorker::Synchronize(v1::SynchronizeResponse* response) {
  v1::SynchronizeResponse own;
  if (response == nullptr) response = &own;
  response->Clear();
  const grpc::Status status = cluster_->fleet().Synchronize(NewContext().get(), NextReport(), response);
  if (!status.ok()) return status;
  state_.set_desired_fingerprint(response->desired_fingerprint());
  for (const v1::RankAcknowledgement& acknowledged : response->acknowledged()) {
    for (int i = state_.ranks_size() - 1; i >= 0; --i) {
      v1::RankReport* rank = state_.mutable_ranks(i);
      if (rank->job_id() != acknowledged.job_id() || rank->attempt() != acknowledged.attempt()) continue;
      rank->clear_samples();
      rank->clear_checkpoints();
      if (acknowledged.exit() || acknowledged.fenced()) state_.mutable_ranks()->DeleteSubrange(i, 1);
    }
  }
  return status;
}

bool TestWorker::SynchronizeUntil(const std::function<bool(const v1::SynchronizeResponse&)>& done) {
  v1::SynchronizeResponse response;
  for (int i = 0; i < 50; ++i) {
    const grpc::Status status = Synchronize(&response);
    CHECK(status.ok()) << status.error_message();
    if (done(response)) return true;
  }
  return false;
}

v1::DesiredRank TestWorker::StartRank(const std::string& command) {
  v1::DesiredRank desired;
  CHECK(SynchronizeUntil([&](const v1::SynchronizeResponse& response) {
    if (response.desired_ranks_size() == 0 || response.desired_ranks(0).command() != command) return false;
    desired = response.desired_ranks(0);
    return true;
  })) << "no rank for "
      << command;
  v1::RankReport* rank = state_.add_ranks();
  rank->set_job_id(desired.job_id());
  rank->set_attempt(desired.attempt());
  rank->set_rank(desired.rank());
  rank->set_state(v1::RankReport::STATE_RUNNING);
  rank->set_phase(command == "prepare" ? v1::PHASE_PREPARE : v1::PHASE_TRAIN);
  const grpc::Status status = Synchronize();
  CHECK(status.ok()) << status.error_message();
  return desired;
}

void TestWorker::FinishRank() {
  CHECK_EQ(state_.ranks_size(), 1);
  state_.mutable_ranks(0)->set_state(v1::RankReport::STATE_EXITED);
  state_.mutable_ranks(0)->mutable_exit()->set_exit_code(0);
  const grpc::Status status = Synchronize();
  CHECK(status.ok()) << status.error_message();
  CHECK_EQ(state_.ranks_size(), 0);
}

}  // namespace longspan::testing
