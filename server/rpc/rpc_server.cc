#include "server/rpc/rpc_server.h"

#include <fmt/format.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <spdlog/spdlog.h>

#include <fstream>
#include <sstream>

#include "proto/support/channel.h"
#include "proto/support/hand_over.h"
#include "server/rpc/call_metrics.h"

namespace longspan::rpc {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return absl::NotFoundError(fmt::format("cannot read {}", path));
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Credentials(const RpcServerOptions& options) {
  const TlsFiles& tls = options.tls;
  if (tls.certificate.empty() != tls.key.empty())
    return absl::InvalidArgumentError("TLS needs both a certificate and its key");
  if (tls.certificate.empty()) {
    if (!tls.client_authority.empty())
      return absl::InvalidArgumentError("an authority for clients needs TLS: give a certificate and a key");
    if (!options.insecure && !IsLoopback(options.listen)) {
      return absl::InvalidArgumentError(fmt::format(
          "{} can be reached from other machines: give a TLS certificate and key, or say --insecure", options.listen));
    }
    return grpc::InsecureServerCredentials();
  }
  grpc::SslServerCredentialsOptions ssl(tls.client_authority.empty()
                                            ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                            : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  const absl::StatusOr<std::string> certificate = ReadFile(tls.certificate);
  if (!certificate.ok()) return certificate.status();
  const absl::StatusOr<std::string> key = ReadFile(tls.key);
  if (!key.ok()) return key.status();
  ssl.pem_key_cert_pairs.push_back({*key, *certificate});
  if (!tls.client_authority.empty()) {
    const absl::StatusOr<std::string> authority = ReadFile(tls.client_authority);
    if (!authority.ok()) return authority.status();
    ssl.pem_root_certs = *authority;
  }
  return grpc::SslServerCredentials(ssl);
}

// What both ends agree on about keepalive pings: proto/support/channel.h pings every kKeepaliveTimeMs. Without the
// first two, gRPC closes the connection of a client that does ("too many pings").
void SetChannelArguments(grpc::ServerBuilder* builder) {
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Two servers must not share a port without a word.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 256);
  builder->SetMaxReceiveMessageSize(kMessageBytesMax);
  builder->SetMaxSendMessageSize(kMessageBytesMax);
}

}  // namespace

RpcServer::RpcServer(RpcServerOptions options, store::Store* store, Observer* observer)
    : options_(std::move(options)), store_(store), observer_(observer) {}

RpcServer::~RpcServer() { Stop(); }

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(RpcServerOptions options, store::Store* store,
                                                            Observer* observer) {
  std::unique_ptr<RpcServer> server(new RpcServer(std::move(options), store, observer));
  if (absl::Status serving = server->Serve(); !serving.ok()) return serving;
  return server;
}

absl::Status RpcServer::Serve() {
  const auto credentials = Credentials(options_);
  if (!credentials.ok()) return credentials.status();
  std::error_code error;
  std::filesystem::create_directories(options_.storage / "jobs", error);
  if (error)
    return absl::FailedPreconditionError(
        fmt::format("cannot create {}/jobs: {}", options_.storage.string(), error.message()));

  logs_ = std::make_unique<LogStore>(options_.storage, options_.logs);
  background_ = std::make_unique<BackgroundThreads>();
  coordinator_ = std::make_unique<Coordinator>(options_.coordinator, store_, observer_);
  if (absl::Status started = coordinator_->Start(); !started.ok()) return started;
  const ServerParts parts{coordinator_.get(), store_,    background_.get(), logs_.get(),
                          &log_wake_ups_,     &closing_, options_.storage};
  training_ = std::make_unique<TrainingServiceImpl>(parts, options_.training);
  fleet_ = std::make_unique<FleetServiceImpl>(parts, options_.fleet);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetChannelArguments(&builder);
  builder.AddListeningPort(options_.listen, *credentials, &port_);
  builder.RegisterService(training_.get());
  builder.RegisterService(fleet_.get());
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(ObserveCalls(observer_));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    return absl::UnavailableError(fmt::format(
        "cannot listen on {}: the port is in use, or the address is not one of this machine", options_.listen));
  }
  return absl::OkStatus();
}

void RpcServer::Stop() {
  if (server_ != nullptr) {
    if (auto* health = server_->GetHealthCheckService()) health->Shutdown();
    fleet_->Close();
    closing_.WakeAll();
    server_->Shutdown(std::chrono::system_clock::now() + options_.stop_deadline);
    server_->Wait();
  }
  // Every call has ended; what is left are callbacks on their way, which need the services.
  if (coordinator_ != nullptr) coordinator_->Stop();
  background_.reset();
  server_.reset();
  TakeOver(observer_);  // from the calls, of which gRPC has waited for the last
}

}  // namespace longspan::rpc
