// What a worker is told of the ranks that should exist on it. Thread: the owner's of the core.
#pragma once

#include <string>

#include "longspan/v1/fleet_service.pb.h"
#include "server/core/core.h"

namespace longspan::rpc {

// What a report says of the answer that its sender acts on.
struct ActedOn {
  WorkerId worker_id;
  std::string desired_fingerprint;
  bool accepts_unchanged = false;
};
ActedOn ActedOnOf(const v1::SynchronizeRequest& request);

// Whether what it acts on is what should exist.
bool IsUpToDate(const core::Core& core, const ActedOn& acted_on);

// All ranks; or only that they are the same, to a worker that has them and knows how to read that.
void SetDesired(const core::Core& core, const ActedOn& acted_on, v1::SynchronizeResponse* answer);

}  // namespace longspan::rpc
