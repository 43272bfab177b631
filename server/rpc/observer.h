// What the RPC layer reports about itself; server/http makes metrics of it. Thread-safe implementations only, and quick
// ones.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "server/core/events.h"

namespace longspan::rpc {

class Observer {
 public:
  virtual ~Observer() = default;
  // A transaction was made durable.
  virtual void Committed(const core::Transaction& transaction, absl::Duration took) {}
  // A step that ran the scheduler.
  virtual void SchedulerPassed(absl::Duration took) {}
  // A call ended. `method` is the method's name alone, `code` as in "OK", "NOT_FOUND".
  virtual void CallEnded(const std::string& method, const std::string& code, absl::Duration took) {}
};

}  // namespace longspan::rpc
