// Runs one function over a stream of items on several threads and hands the results on in the order of the items.
//
//   OrderedWorkers<Chunk, EncodedChunk> workers(options, encode, write);
//   for (...) workers.Put(std::move(chunk), bytes);     // may call `write` for results that are due
//   workers.Finish();                                   // calls it for the rest
//
// Bounded: when more than `bytes_max` of items (or `items_max`) are on their way, Put waits for the oldest. What `work`
// throws comes out of Put or Finish at that item's place in the order, so which error is seen does not depend on
// threads. After such an exception Finish does nothing; destruction drops what waits and joins the threads. With one
// thread everything happens inside Put. Put and Finish belong to one thread.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "proto/support/mutex.h"

namespace longspan::trainer {

struct OrderedWorkersOptions {
  int64_t threads = 1;
  size_t items_max = 64;
  int64_t bytes_max = int64_t{32} << 20;  // one item may be larger
};

template <class Item, class Result>
class OrderedWorkers {
 public:
  // `work` gets the number of the thread that runs it, 0 to threads - 1; `consume` runs on the caller's thread.
  using Work = std::function<Result(Item& item, size_t thread)>;
  using Consume = std::function<void(Result result)>;

  OrderedWorkers(const OrderedWorkersOptions& options, Work work, Consume consume)
      : options_(options), work_(std::move(work)), consume_(std::move(consume)) {
    for (int64_t thread = 0; options.threads > 1 && thread < options.threads; ++thread) {
      threads_.emplace_back([this, thread] { RunThread(static_cast<size_t>(thread)); });
    }
  }
  ~OrderedWorkers() {
    {
      MutexLock lock(mutex_);
      closed_ = true;
      waiting_.clear();
    }
    changed_.NotifyAll();
    for (std::thread& thread : threads_) thread.join();
  }
  OrderedWorkers(const OrderedWorkers&) = delete;
  OrderedWorkers& operator=(const OrderedWorkers&) = delete;

  void Put(Item item, int64_t bytes) {
    if (threads_.empty()) return consume_(work_(item, 0));
    while (!order_.empty() && (order_.size() >= options_.items_max || bytes_ + bytes > options_.bytes_max))
      TakeOldest();
    auto job = std::make_unique<Job>();
    job->item = std::move(item);
    job->bytes = bytes;
    bytes_ += bytes;
    {
      MutexLock lock(mutex_);
      waiting_.push_back(job.get());
    }
    changed_.NotifyAll();
    order_.push_back(std::move(job));
  }

  void Finish() {
    while (!failed_ && !order_.empty()) TakeOldest();
  }

 private:
  struct Job {
    Item item;
    int64_t bytes = 0;
    std::optional<Result> result;  // these two and `done` under the mutex, until done
    std::exception_ptr error;
    bool done = false;
  };

  void TakeOldest() {
    failed_ = true;  // until it is known to be good
    const std::unique_ptr<Job> job = std::move(order_.front());
    order_.pop_front();
    bytes_ -= job->bytes;
    {
      MutexLock lock(mutex_);
      while (!job->done) changed_.Wait(mutex_);
    }
    if (job->error) std::rethrow_exception(job->error);
    consume_(std::move(*job->result));
    failed_ = false;
  }

  Job* NextJob() {
    MutexLock lock(mutex_);
    while (waiting_.empty() && !closed_) changed_.Wait(mutex_);
    if (closed_) return nullptr;
    Job* const job = waiting_.front();
    waiting_.pop_front();
    return job;
  }

  void RunThread(size_t thread) {
    while (Job* const job = NextJob()) {
      std::optional<Result> result;
      std::exception_ptr error;
      try {
        result = work_(job->item, thread);
      } catch (...) {
        error = std::current_exception();
      }
      job->item = Item();  // its memory goes before the result waits for its turn
      MutexLock lock(mutex_);
      job->result = std::move(result);
      job->error = error;
      job->done = true;
      changed_.NotifyAll();
    }
  }

  const OrderedWorkersOptions options_;
  const Work work_;
  const Consume consume_;
  std::deque<std::unique_ptr<Job>> order_;  // on their way, the oldest first; the caller's thread alone
  int64_t bytes_ = 0;
  bool failed_ = false;
  Mutex mutex_;
  CondVar changed_;
  std::deque<Job*> waiting_ GUARDED_BY(mutex_);
  bool closed_ GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace longspan::trainer
