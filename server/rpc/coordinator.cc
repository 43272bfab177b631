#include "server/rpc/coordinator.h"

#include <pthread.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <string>
#include <utility>

namespace longspan::rpc {
namespace {

// No wait is longer: steady clocks count nanoseconds in 64 bits.
constexpr absl::Duration kWaitMax = absl::Hours(24 * 365);

}  // namespace

Coordinator::Coordinator(Options options, store::Store* store, Observer* observer)
    : options_(std::move(options)),
      start_wall_(absl::Now()),
      start_steady_(Clock::now()),
      durable_(options_, Hooks(), store, observer) {}

Coordinator::~Coordinator() { Stop(); }

absl::Time Coordinator::Now() const {
  return start_wall_ +
         absl::FromChrono(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_steady_));
}

DurableCore::Hooks Coordinator::Hooks() {
  DurableCore::Hooks hooks;
  hooks.now = [this] { return Now(); };
  hooks.on_lost = [this](const absl::Status& cause) {
    spdlog::error("cannot store: {}; starting again from the store", std::string(cause.message()));
    if (absl::IsInternal(cause) && options_.on_fatal) options_.on_fatal(cause);
  };
  hooks.on_back = [this] {
    spdlog::info("the store works again");
    wake_ups_.WakeAll();
  };
  return hooks;
}

absl::Status Coordinator::Start() {
  if (absl::Status loaded = durable_.Load(); !loaded.ok()) return loaded;
  {
    const MutexLock lock(mutex_);
    open_ = true;
  }
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "coordinator");  // for `top -H`
    Loop();
  });
  return absl::OkStatus();
}

void Coordinator::Stop() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
    open_ = false;
  }
  changed_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

void Coordinator::Put(Item item) {
  absl::Status refused;
  {
    const MutexLock lock(mutex_);
    if (!open_) {
      refused = absl::UnavailableError("the server is shutting down, try again");
    } else if (queue_.size() >= options_.queued_max) {
      refused = absl::ResourceExhaustedError("the server is overloaded, try again later");
    } else {
      queue_.push_back(std::move(item));
    }
  }
  if (refused.ok()) {
    changed_.NotifyOne();
  } else if (auto* sending = std::get_if<DurableCore::Sending>(&item)) {
    sending->callback(refused, nullptr);
  } else {
    std::get<QueryCallback>(item)(refused);
  }
}

void Coordinator::Send(core::Event event, ReplyCallback callback) {
  Put(DurableCore::Sending{std::move(event), std::move(callback)});
}
void Coordinator::Query(QueryCallback callback) { Put(std::move(callback)); }

void Coordinator::RunAt(Clock::time_point time, std::function<void()> work) {
  {
    const MutexLock lock(mutex_);
    timers_.emplace(time, std::move(work));
  }
  changed_.NotifyOne();
}

Coordinator::Clock::time_point Coordinator::NextTurnTime() const {
  const absl::Duration until = std::clamp(durable_.NextTurn() - start_wall_, absl::ZeroDuration(), kWaitMax);
  const Clock::time_point next = start_steady_ + absl::ToChronoNanoseconds(until);
  return timers_.empty() ? next : std::min(next, timers_.begin()->first);
}

std::vector<std::function<void()>> Coordinator::TakeDueTimers() {
  std::vector<std::function<void()>> due;
  const auto end = timers_.upper_bound(Clock::now());
  for (auto timer = timers_.begin(); timer != end; ++timer) due.push_back(std::move(timer->second));
  timers_.erase(timers_.begin(), end);
  return due;
}

void Coordinator::Loop() {
  while (true) {
    std::vector<Item> items;
    std::vector<std::function<void()>> timers;
    bool idle = false;
    {
      const MutexLock lock(mutex_);
      while (queue_.empty() && !stopping_ && Clock::now() < NextTurnTime()) {
        changed_.WaitUntil(mutex_, NextTurnTime());
      }
      if (stopping_ && queue_.empty()) return;
      const size_t count = std::min(queue_.size(), options_.group_max);
      for (size_t i = 0; i < count; ++i) {
        items.push_back(std::move(queue_.front()));
        queue_.pop_front();
      }
      idle = queue_.empty();
      if (!stopping_) timers = TakeDueTimers();
    }
    Turn(std::move(items), idle, timers);
  }
}

void Coordinator::Turn(std::vector<Item> items, bool idle, const std::vector<std::function<void()>>& timers) {
  const DurableCore::Changed changed = durable_.Turn(std::move(items), idle);
  for (const JobId& job_id : changed.jobs) wake_ups_.Wake(job_id.value());
  for (const WorkerId& worker_id : changed.workers) wake_ups_.Wake(WorkerName(worker_id));
  for (const std::function<void()>& timer : timers) timer();
}

}  // namespace longspan::rpc
