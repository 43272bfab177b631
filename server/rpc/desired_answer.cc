#include "server/rpc/desired_answer.h"

#include "server/rpc/messages.h"

namespace longspan::rpc {

ActedOn ActedOnOf(const v1::SynchronizeRequest& request) {
  return {WorkerId(request.worker_id()), request.desired_fingerprint(), request.accepts_unchanged()};
}

bool IsUpToDate(const core::Core& core, const ActedOn& acted_on) {
  return core.DesiredFingerprint(acted_on.worker_id) == acted_on.desired_fingerprint;
}

void SetDesired(const core::Core& core, const ActedOn& acted_on, v1::SynchronizeResponse* answer) {
  if (acted_on.accepts_unchanged && IsUpToDate(core, acted_on)) {
    answer->set_desired_unchanged(true);
    answer->set_desired_fingerprint(acted_on.desired_fingerprint);
    return;
  }
  const core::DesiredRanks desired = core.Desired(acted_on.worker_id);
  for (const core::DesiredRank& rank : desired.ranks) *answer->add_desired_ranks() = ToMessage(rank);
  answer->set_desired_fingerprint(desired.fingerprint);
}

}  // namespace longspan::rpc
