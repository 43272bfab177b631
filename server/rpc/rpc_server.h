// The gRPC side of the server: both services, health, reflection, TLS, limits, on one port.
//
//   auto server = RpcServer::Start(options, store.get(), observer);   // serves when it returns
//   ...
//   server->Stop();                                                   // in order, within stop_deadline and a little
//
// `store` and `observer` must outlive it. Start, Stop and the destructor from one thread.
#pragma once

#include <grpcpp/server.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/rpc/authentication.h"
#include "server/rpc/coordinator.h"
#include "server/rpc/fleet_service.h"
#include "server/rpc/training_service.h"

namespace longspan::rpc {

struct TlsFiles {
  std::string certificate;       // chain of the server, PEM
  std::string key;               // PEM
  std::string client_authority;  // when set, clients must show a certificate it signed
};

struct RpcServerOptions {
  std::string listen = "127.0.0.1:0";
  TlsFiles tls;           // empty: plain text
  bool insecure = false;  // allows plain text on more than the loopback interface
  std::filesystem::path storage;
  Coordinator::Options coordinator;
  TrainingServiceOptions training;
  FleetServiceOptions fleet;
  LogLimits logs;
  std::chrono::milliseconds stop_deadline = std::chrono::seconds(5);  // for calls under way
};

class RpcServer {
 public:
  // Fails with a sentence that names the address, the file or the folder.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(RpcServerOptions options, store::Store* store,
                                                          Observer* observer);
  ~RpcServer();

  int port() const { return port_; }
  Coordinator& coordinator() { return *coordinator_; }
  FleetServiceImpl& fleet() { return *fleet_; }

  // Closes the gate, ends held calls and streams with a word to come back, waits for calls under way, then stops the
  // coordinator.
  void Stop();

 private:
  RpcServer(RpcServerOptions options, store::Store* store, Observer* observer);
  absl::Status Serve();

  const RpcServerOptions options_;
  store::Store* const store_;
  Observer* const observer_;
  std::unique_ptr<LogStore> logs_;
  WakeUps log_wake_ups_;
  WakeUps closing_;
  std::unique_ptr<BackgroundThreads> background_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<TrainingServiceImpl> training_;
  std::unique_ptr<FleetServiceImpl> fleet_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace longspan::rpc
