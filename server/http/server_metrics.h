// The server's metrics: what happened is counted as it happens (Observer), what is comes from a snapshot at each
// scrape, so that series of workers and jobs that are gone go away by themselves. Thread-safe.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>

#include "server/http/cluster_snapshot.h"
#include "server/rpc/observer.h"

namespace longspan::http {

class ServerMetrics final : public rpc::Observer {
 public:
  ServerMetrics();

  void Committed(const core::Transaction& transaction, absl::Duration took) override;
  void SchedulerPassed(absl::Duration took) override;
  void CallEnded(const std::string& method, const std::string& code, absl::Duration took) override;

  // Prometheus text. Without a snapshot only what was counted, and longspan_coordinator_up 0.
  std::string Render(const absl::StatusOr<ClusterSnapshot>& snapshot) const;

 private:
  void CountTransition(const core::JobWrite& write, const core::Transaction& transaction);

  prometheus::Registry registry_;
  prometheus::Family<prometheus::Counter>& transitions_;
  prometheus::Family<prometheus::Histogram>& run_duration_;
  prometheus::Family<prometheus::Counter>& handled_;
  prometheus::Family<prometheus::Histogram>& handling_seconds_;
  prometheus::Histogram& queue_wait_;
  prometheus::Histogram& scheduler_pass_;
  prometheus::Histogram& commit_;
};

}  // namespace longspan::http
