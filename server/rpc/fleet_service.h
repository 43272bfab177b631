// What worker daemons call. Thread-safe; one instance per server.
//
// Synchronize: the report goes to the core at once, whatever happens to the call afterwards. Then the call is answered
// at once when the worker should do something else than it does, or when something of its report was stored for the
// first time; else it is held until its desired ranks change, a newer call of the same worker comes, or `hold` is over.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>

#include "longspan/v1/fleet_service.grpc.pb.h"
#include "proto/support/mutex.h"
#include "server/rpc/authentication.h"
#include "server/rpc/desired_answer.h"
#include "server/rpc/server_parts.h"
#include "server/rpc/unary_call.h"

namespace longspan::rpc {

struct FleetServiceOptions {
  BearerToken token;
  std::chrono::milliseconds hold = std::chrono::seconds(5);             // at most; and at most a quarter of the lease
  std::chrono::milliseconds answer_timeout = std::chrono::seconds(20);  // above hold
  // How soon a worker is asked again that has yet to kill a rank of an old attempt.
  std::chrono::milliseconds call_again_fenced = std::chrono::milliseconds(500);
};

class FleetServiceImpl final : public v1::FleetService::CallbackService {
 public:
  FleetServiceImpl(const ServerParts& parts, FleetServiceOptions options);

  grpc::ServerUnaryReactor* Synchronize(grpc::CallbackServerContext* context, const v1::SynchronizeRequest* request,
                                        v1::SynchronizeResponse* response) override;
  grpc::ServerReadReactor<v1::UploadLogsRequest>* UploadLogs(grpc::CallbackServerContext* context,
                                                             v1::UploadLogsResponse* response) override;

  // Ends every held call and holds none from now on.
  void Close();
  // For tests and metrics.
  size_t held_calls();

 private:
  using Call = UnaryCall<v1::SynchronizeResponse>;
  // What a report was answered with, to be sent when its call ends.
  struct Held {
    std::shared_ptr<Call> call;
    uint64_t number = 0;
    ActedOn acted_on;
    v1::SynchronizeResponse answer;
    WakeUps::Subscription changes;
  };

  void Reported(const std::shared_ptr<Call>& call, const ActedOn& acted_on, bool brings_news,
                const core::ReportReply& reply, const core::Core& core);
  // A worker whose call is held must renew its lease in time, also when an answer or two get lost.
  std::chrono::milliseconds HoldTime() const;
  void Hold(const std::shared_ptr<Call>& call, const ActedOn& acted_on, v1::SynchronizeResponse answer);
  // Ends the held call of a worker: `number` 0 any, else only that one.
  void EndHeld(const WorkerId& worker_id, uint64_t number);
  // Ends it only if the worker should now do something else.
  void EndHeldIfChanged(const WorkerId& worker_id, uint64_t number);
  static void Send(const std::shared_ptr<Call>& call, v1::SynchronizeResponse answer);

  const ServerParts parts_;
  const FleetServiceOptions options_;
  Mutex mutex_;
  bool closed_ GUARDED_BY(mutex_) = false;
  uint64_t last_number_ GUARDED_BY(mutex_) = 0;
  std::map<WorkerId, Held> held_ GUARDED_BY(mutex_);
};

}  // namespace longspan::rpc
