// A few threads for work that blocks on the file system or takes long, so that a slow disk or a hanging mount never
// holds a thread of gRPC or the coordinator. Thread-safe.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "proto/support/mutex.h"

namespace longspan::rpc {

class BackgroundThreads {
 public:
  struct Options {
    size_t threads = 4;
    size_t queued_max = 1024;
  };
  explicit BackgroundThreads(Options options);
  BackgroundThreads() : BackgroundThreads(Options()) {}
  // Waits for work that has begun; work that has not is run too, so that every callback comes.
  ~BackgroundThreads();

  // False when queued_max pieces of work wait already; then `work` is not run.
  [[nodiscard]] bool Run(std::function<void()> work);

 private:
  void Loop();

  const Options options_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> queue_ GUARDED_BY(mutex_);
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace longspan::rpc
