#include "worker/daemon/metrics_http.h"

#include <fmt/format.h>
#include <httplib.h>

#include <atomic>
#include <thread>

namespace longspan::worker {

struct MetricsHttp::Server {
  httplib::Server http;
  std::thread thread;
  std::atomic<bool> ended = false;
};

MetricsHttp::MetricsHttp() : server_(std::make_unique<Server>()) {}

absl::StatusOr<std::unique_ptr<MetricsHttp>> MetricsHttp::Start(MetricsHttpOptions options) {
  std::unique_ptr<MetricsHttp> self(new MetricsHttp);
  httplib::Server& http = self->server_->http;
  // Its default, SO_REUSEPORT, would share a port that is in use instead of refusing it.
  http.set_socket_options([](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, reinterpret_cast<const char*>(&yes), sizeof yes);
  });
  http.set_read_timeout(5);
  http.set_write_timeout(5);
  http.set_payload_max_length(1024);
  // A scraper that keeps its connection would hold one of the eight threads.
  http.set_keep_alive_max_count(1);
  http.Get("/metrics", [scrape = options.scrape](const httplib::Request&, httplib::Response& response) {
    response.set_content(scrape(), "text/plain; version=0.0.4; charset=utf-8");
  });
  http.Get("/healthz",
           [](const httplib::Request&, httplib::Response& response) { response.set_content("ok\n", "text/plain"); });
  if (options.port == 0) {
    self->port_ = http.bind_to_any_port(options.host);
  } else if (http.bind_to_port(options.host, options.port)) {
    self->port_ = options.port;
  }
  if (self->port_ <= 0) {
    return absl::UnavailableError(
        fmt::format("cannot listen on {}:{}: is the port in use?", options.host, options.port));
  }
  self->server_->thread = std::thread([server = self->server_.get()] {
    server->http.listen_after_bind();
    server->ended = true;
  });
  // A stop() before it runs would be lost.
  while (!http.is_running() && !self->server_->ended) std::this_thread::yield();
  return self;
}

MetricsHttp::~MetricsHttp() {
  server_->http.stop();
  if (server_->thread.joinable()) server_->thread.join();
}

}  // namespace longspan::worker
