#include "server/rpc/background_threads.h"

namespace longspan::rpc {

BackgroundThreads::BackgroundThreads(Options options) : options_(options) {
  for (size_t i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { Loop(); });
}

BackgroundThreads::~BackgroundThreads() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
  }
  changed_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

bool BackgroundThreads::Run(std::function<void()> work) {
  {
    const MutexLock lock(mutex_);
    if (queue_.size() >= options_.queued_max) return false;
    queue_.push_back(std::move(work));
  }
  changed_.NotifyOne();
  return true;
}

void BackgroundThreads::Loop() {
  while (true) {
    std::function<void()> work;
    {
      const MutexLock lock(mutex_);
      while (!stopping_ && queue_.empty()) changed_.Wait(mutex_);
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    work();
  }
}

}  // namespace longspan::rpc
