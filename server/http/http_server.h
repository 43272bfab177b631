// The server's HTTP endpoints: /metrics, /healthz, /readyz, /targets, and a status page at /. Reading only.
//
// Four threads serve requests; each request is bounded in size and time, so that a slow or silent client cannot keep
// others out for long. The coordinator and the metrics must outlive the server. Start, Stop and the destructor from one
// thread.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/http/server_metrics.h"
#include "server/rpc/authentication.h"
#include "server/rpc/coordinator.h"

namespace longspan::http {

struct HttpServerOptions {
  std::string listen = "127.0.0.1:0";
  bool insecure = false;            // allows plain text on more than the loopback interface
  rpc::BearerToken token;           // wanted for the status page
  bool metrics_need_token = false;  // and for /metrics and /targets
  std::string version;
};

class HttpServer {
 public:
  // Fails with a sentence that names the address.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpServerOptions options, ServerMetrics* metrics);
  ~HttpServer();

  int port() const;
  // /readyz and all that needs jobs or workers answer 503 before this.
  void Serve(rpc::Coordinator* coordinator);
  void Stop();

 private:
  class State;
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace longspan::http
