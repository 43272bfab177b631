// The daemon's HTTP listener: /metrics and /healthz, nothing that changes anything.
#pragma once

#include <absl/status/statusor.h>

#include <functional>
#include <memory>
#include <string>

namespace longspan::worker {

struct MetricsHttpOptions {
  std::string host = "127.0.0.1";
  int port = 0;                         // 0: any free one
  std::function<std::string()> scrape;  // text of /metrics; called from several threads at once
};

class MetricsHttp {
 public:
  // Listens when it returns. Fails when the port is in use.
  static absl::StatusOr<std::unique_ptr<MetricsHttp>> Start(MetricsHttpOptions options);
  ~MetricsHttp();

  int port() const { return port_; }

 private:
  struct Server;
  MetricsHttp();

  std::unique_ptr<Server> server_;
  int port_ = 0;
};

}  // namespace longspan::worker
