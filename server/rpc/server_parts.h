// What the services and their streams share. Owned by RpcServer; everything here outlives every call.
#pragma once

#include <filesystem>

#include "server/rpc/background_threads.h"
#include "server/rpc/coordinator.h"
#include "server/rpc/log_store.h"
#include "server/rpc/wake_ups.h"
#include "server/store/store.h"

namespace longspan::rpc {

struct ServerParts {
  Coordinator* coordinator = nullptr;
  const store::Store* store = nullptr;  // its Read functions only
  BackgroundThreads* background = nullptr;
  LogStore* logs = nullptr;
  WakeUps* log_wake_ups = nullptr;  // by LogName
  WakeUps* closing = nullptr;       // by kClosing, once, when the server stops
  std::filesystem::path storage;
};

inline constexpr char kClosing[] = "closing";

}  // namespace longspan::rpc
