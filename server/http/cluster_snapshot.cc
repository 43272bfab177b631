#include "server/http/cluster_snapshot.h"

#include <future>
#include <memory>

namespace longspan::http {

absl::StatusOr<ClusterSnapshot> TakeSnapshot(rpc::Coordinator& coordinator, SnapshotScope scope,
                                             std::chrono::milliseconds timeout) {
  // Shared with the callback, which may come after this function has given up.
  auto promise = std::make_shared<std::promise<absl::StatusOr<ClusterSnapshot>>>();
  std::future<absl::StatusOr<ClusterSnapshot>> answer = promise->get_future();
  const absl::Time now = coordinator.Now();
  coordinator.Query([promise, scope, now](absl::StatusOr<const core::Core*> core) {
    if (!core.ok()) return promise->set_value(core.status());
    ClusterSnapshot snapshot;
    snapshot.now = now;
    snapshot.jobs = (*core)->ListJobs(JobId(), scope.jobs_max, [&](const core::Job& job) {
      return !core::IsTerminal(job.state) || job.end_time > now - scope.ended_within;
    });
    snapshot.workers = (*core)->ListWorkers();
    snapshot.queues = (*core)->ListQueues(now);
    snapshot.waiting_by_reason = (*core)->WaitingByReason();
    snapshot.counters = (*core)->counters();
    snapshot.jobs_by_state = (*core)->JobsByState();
    promise->set_value(std::move(snapshot));
  });
  if (answer.wait_for(timeout) != std::future_status::ready) {
    return absl::DeadlineExceededError("the coordinator does not answer");
  }
  return answer.get();
}

}  // namespace longspan::http
