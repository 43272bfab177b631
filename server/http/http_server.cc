#include "server/http/http_server.h"

#include <fmt/format.h>
#include <httplib.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "proto/support/channel.h"
#include "server/http/pages.h"

namespace longspan::http {
namespace {

constexpr std::chrono::seconds kAnswerTimeout(2);
constexpr size_t kThreads = 4;

// What a client that is not ready to show jobs gets.
void Refuse(const absl::Status& status, httplib::Response* response) {
  response->status = 503;
  response->set_content(std::string(status.message().data(), status.message().size()) + "\n", "text/plain");
}

// "127.0.0.1:80", "[::1]:80".
bool Split(const std::string& listen, std::string* host, int* port) {
  const size_t colon = listen.rfind(':');
  if (colon == std::string::npos) return false;
  *host = listen.substr(0, colon);
  if (host->size() > 2 && host->front() == '[' && host->back() == ']') *host = host->substr(1, host->size() - 2);
  const std::string digits = listen.substr(colon + 1);
  if (host->empty() || digits.empty() || digits.size() > 5 ||
      digits.find_first_not_of("0123456789") != std::string::npos)
    return false;
  *port = std::stoi(digits);
  return *port <= 65535;
}

}  // namespace

class HttpServer::State {
 public:
  State(HttpServerOptions options, ServerMetrics* metrics) : options_(std::move(options)), metrics_(metrics) {}
  ~State() { Stop(); }

  absl::Status Start() {
    std::string host;
    int port = 0;
    if (!Split(options_.listen, &host, &port)) {
      return absl::InvalidArgumentError(fmt::format("'{}' is no HOST:PORT to listen on", options_.listen));
    }
    if (!options_.insecure && !IsLoopback(options_.listen)) {
      return absl::InvalidArgumentError(
          fmt::format("{} can be reached from other machines, and HTTP is plain text: say --insecure, or use 127.0.0.1",
                      options_.listen));
    }
    Configure();
    port_ = port == 0 ? server_.bind_to_any_port(host) : server_.bind_to_port(host, port) ? port : -1;
    if (port_ <= 0) {
      return absl::UnavailableError(fmt::format(
          "cannot listen on {}: the port is in use, or the address is not one of this machine", options_.listen));
    }
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::yield();  // Stop does nothing before
    return absl::OkStatus();
  }

  void Stop() {
    if (!thread_.joinable()) return;
    server_.stop();
    thread_.join();
  }

  int port() const { return port_; }
  void Serve(rpc::Coordinator* coordinator) { coordinator_ = coordinator; }

 private:
  using Request = httplib::Request;
  using Response = httplib::Response;

  void Configure() {
    server_.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
    server_.set_payload_max_length(4096);
    server_.set_read_timeout(std::chrono::seconds(5));
    server_.set_write_timeout(std::chrono::seconds(5));
    server_.set_keep_alive_max_count(100);
    server_.set_keep_alive_timeout(2);
    // The library's own choice lets a second server share the port without a word.
    server_.set_socket_options([](int socket) {
      const int on = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    });
    server_.Get("/healthz", [](const Request&, Response& response) { response.set_content("ok\n", "text/plain"); });
    server_.Get("/readyz", [this](const Request&, Response& response) { Ready(&response); });
    server_.Get("/metrics", [this](const Request& request, Response& response) { Metrics(request, &response); });
    server_.Get("/targets", [this](const Request& request, Response& response) { Targets(request, &response); });
    server_.Get("/", [this](const Request& request, Response& response) { Page(request, &response); });
  }

  absl::StatusOr<ClusterSnapshot> Snapshot(SnapshotScope scope) const {
    rpc::Coordinator* coordinator = coordinator_;
    if (coordinator == nullptr) return absl::UnavailableError("the server is starting");
    return TakeSnapshot(*coordinator, scope, kAnswerTimeout);
  }

  bool Allowed(const Request& request, bool needs_token, Response* response) const {
    if (!needs_token || options_.token.Matches(request.get_header_value("Authorization"))) return true;
    response->status = 401;
    response->set_header("WWW-Authenticate", "Bearer");
    response->set_content("this page wants a token: send 'Authorization: Bearer <token>'\n", "text/plain");
    return false;
  }

  void Ready(Response* response) const {
    const absl::StatusOr<ClusterSnapshot> snapshot = Snapshot({absl::ZeroDuration(), 1});
    if (!snapshot.ok()) return Refuse(snapshot.status(), response);
    response->set_content("ready\n", "text/plain");
  }

  void Metrics(const Request& request, Response* response) const {
    if (!Allowed(request, options_.metrics_need_token, response)) return;
    response->set_content(metrics_->Render(Snapshot({})), "text/plain; version=0.0.4; charset=utf-8");
  }

  void Targets(const Request& request, Response* response) const {
    if (!Allowed(request, options_.metrics_need_token, response)) return;
    const absl::StatusOr<ClusterSnapshot> snapshot = Snapshot({absl::ZeroDuration(), 1});
    if (!snapshot.ok()) return Refuse(snapshot.status(), response);
    response->set_content(TargetsJson(*snapshot), "application/json");
  }

  void Page(const Request& request, Response* response) const {
    if (!Allowed(request, true, response)) return;
    const absl::StatusOr<ClusterSnapshot> snapshot = Snapshot({absl::Hours(24), 500});
    if (!snapshot.ok()) return Refuse(snapshot.status(), response);
    response->set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'");
    response->set_header("X-Content-Type-Options", "nosniff");
    response->set_content(StatusPage(*snapshot, options_.version), "text/html; charset=utf-8");
  }

  const HttpServerOptions options_;
  ServerMetrics* const metrics_;
  std::atomic<rpc::Coordinator*> coordinator_{nullptr};
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

HttpServer::HttpServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options, ServerMetrics* metrics) {
  auto state = std::make_unique<State>(std::move(options), metrics);
  if (absl::Status started = state->Start(); !started.ok()) return started;
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
}

int HttpServer::port() const { return state_->port(); }
void HttpServer::Serve(rpc::Coordinator* coordinator) { state_->Serve(coordinator); }
void HttpServer::Stop() { state_->Stop(); }

}  // namespace longspan::http
