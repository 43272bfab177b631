#include "worker/trainer/parallel/collective_meter.h"

#include <algorithm>

namespace longspan::trainer {

const char* NameOf(Collective kind) {
  switch (kind) {
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kAllGather:
      return "all_gather";
    case Collective::kExchange:
      break;
  }
  return "exchange";
}

void CollectiveMeter::Moved(Collective kind, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  Of(kind).use.bytes += bytes;
}

void CollectiveMeter::Ended(Collective kind, Clock::time_point begin) {
  const std::lock_guard lock(mutex_);
  const Clock::time_point now = Clock::now();
  Kind& of = Of(kind);
  of.use.busy += now - std::max(begin, of.last_end);
  of.last_end = now;
}

void CollectiveMeter::Waited(Collective kind, Clock::time_point since) {
  const std::lock_guard lock(mutex_);
  Of(kind).use.waited += Clock::now() - since;
}

CollectiveUse CollectiveMeter::use(Collective kind) const {
  const std::lock_guard lock(mutex_);
  return kinds_[static_cast<size_t>(kind)].use;
}

}  // namespace longspan::trainer
