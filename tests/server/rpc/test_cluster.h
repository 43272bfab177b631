// A real server on a free port with a real store in its own folder, and a worker daemon reduced to its calls.
#pragma once

#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "longspan/v1/fleet_service.grpc.pb.h"
#include "longspan/v1/training_service.grpc.pb.h"
#include "server/rpc/rpc_server.h"
#include "server/store/store.h"
#include "tests/temporary_folder.h"

namespace longspan::testing {

// Every call of a test ends within this, come what may.
inline constexpr std::chrono::seconds kTestTimeout(30);

std::unique_ptr<grpc::ClientContext> NewContext();

class TestCluster {
 public:
  // `adjust` may change the options before the server starts.
  explicit TestCluster(const std::function<void(rpc::RpcServerOptions*)>& adjust = {});
  ~TestCluster();

  v1::TrainingService::Stub& client() { return *client_; }
  v1::FleetService::Stub& fleet() { return *fleet_; }
  rpc::RpcServer& server() { return *server_; }
  std::shared_ptr<grpc::Channel> channel() { return channel_; }
  std::filesystem::path storage() const { return folder_.path() / "storage"; }
  void StopServer();
  // Stops the server and starts another one over the same store.
  void RestartServer();

  // CHECKs that it is accepted.
  v1::Job Submit(const std::string& request_id, const std::function<void(v1::JobSpec*)>& adjust = {});
  v1::Job Get(const std::string& job_id);

 private:
  void StartServer();

  TemporaryFolder folder_;
  rpc::Observer observer_;
  std::function<void(rpc::RpcServerOptions*)> adjust_;
  std::unique_ptr<store::Store> store_;
  std::unique_ptr<rpc::RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::TrainingService::Stub> client_;
  std::unique_ptr<v1::FleetService::Stub> fleet_;
};

v1::JobSpec ValidSpec();

// What a daemon would report; the test says what its ranks do.
class TestWorker {
 public:
  TestWorker(TestCluster* cluster, std::string worker_id, int slots = 1);

  // Sends the report and takes over what it is answered; acknowledged exits are forgotten.
  grpc::Status Synchronize(v1::SynchronizeResponse* response = nullptr);
  // Calls until `done` holds of the answer; false after some tries.
  bool SynchronizeUntil(const std::function<bool(const v1::SynchronizeResponse&)>& done);
  // Waits for a rank with this command, and reports it RUNNING.
  v1::DesiredRank StartRank(const std::string& command);
  // Ends the only rank well.
  void FinishRank();

  v1::SynchronizeRequest NextReport();
  v1::SynchronizeRequest& state() { return state_; }

 private:
  TestCluster* const cluster_;
  v1::SynchronizeRequest state_;
};

}  // namespace longspan::testing
