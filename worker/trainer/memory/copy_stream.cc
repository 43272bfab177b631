#include "worker/trainer/memory/copy_stream.h"

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

namespace longspan::trainer {
namespace {

class ThreadStream : public CopyStream {
 public:
  ThreadStream() : thread_([this] { Run(); }) {}
  ~ThreadStream() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  Ticket Copy(std::byte* to, const std::byte* from, int64_t bytes) override {
    copied_bytes_ += bytes;
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back({to, from, bytes});
    }
    changed_.notify_all();
    return ++asked_;
  }

  void Finish() override { Wait(asked_); }

  void Wait(Ticket ticket) override {
    std::unique_lock lock(mutex_);
    if (done_ >= ticket) return;
    const auto begin = std::chrono::steady_clock::now();
    changed_.wait(lock, [&] { return done_ >= ticket; });
    wait_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  struct Request {
    std::byte* to;
    const std::byte* from;
    int64_t bytes;
  };

  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return closing_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const Request request = queue_.front();
      queue_.pop_front();
      lock.unlock();
      std::memcpy(request.to, request.from, static_cast<size_t>(request.bytes));
      lock.lock();
      ++done_;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> queue_;
  Ticket asked_ = 0;  // only the asking thread
  Ticket done_ = 0;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<CopyStream> CopyStream::OnThread() { return std::make_unique<ThreadStream>(); }

}  // namespace longspan::trainer
