#include "server/rpc/coordinator.h"

#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>

#include "proto/support/check.h"

namespace longspan::rpc {
namespace {

// Between ticks for deadlines: one that lies in the past must not spin.
constexpr std::chrono::milliseconds kTickDistanceMin(10);

std::string Text(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

absl::Status Unavailable(const absl::Status& cause) {
  return absl::UnavailableError(fmt::format("the server cannot store anything now, try again: {}", Text(cause)));
}

// What the callers of a group get whose commit failed: they may try again, and a full disk is named as such.
absl::Status CommitError(const absl::Status& cause) {
  const std::string message = fmt::format("nothing was changed, the server could not store it: {}", Text(cause));
  if (absl::IsResourceExhausted(cause)) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

absl::Duration Since(Coordinator::Clock::time_point start) {
  return absl::FromChrono(std::chrono::duration_cast<std::chrono::nanoseconds>(Coordinator::Clock::now() - start));
}

}  // namespace

Coordinator::Coordinator(Options options, store::Store* store, Observer* observer)
    : options_(std::move(options)),
      store_(store),
      observer_(observer),
      start_wall_(absl::Now()),
      start_steady_(Clock::now()) {}

Coordinator::~Coordinator() { Stop(); }

absl::Time Coordinator::Now() const { return start_wall_ + Since(start_steady_); }

absl::Status Coordinator::Start() {
  if (absl::Status loaded = Reload(); !loaded.ok()) return loaded;
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

absl::Status Coordinator::Reload() {
  absl::StatusOr<core::StoredState> stored = store_->Load();
  if (!stored.ok()) return stored.status();
  auto core = std::make_unique<core::Core>(options_.core);
  const core::Effects effects = core->Step(core::Restarted{*std::move(stored)}, Now());
  if (absl::Status committed = Commit(effects.transaction); !committed.ok()) return committed;
  core_ = std::move(core);
  lost_ = absl::OkStatus();
  tick_soon_ = true;
  next_tick_ = Clock::now();
  return absl::OkStatus();
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
  } else if (Sending* sending = std::get_if<Sending>(&item)) {
    sending->callback(refused, nullptr);
  } else {
    std::get<QueryCallback>(item)(refused);
  }
}

void Coordinator::Send(core::Event event, ReplyCallback callback) {
  Put(Sending{std::move(event), std::move(callback)});
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
  Clock::time_point next = next_tick_;
  if (core_ != nullptr) {
    const absl::Duration until = core_->NextDeadline() - start_wall_;
    if (until < absl::Hours(24 * 365)) {
      next = std::min(next, std::max(last_tick_ + kTickDistanceMin, start_steady_ + absl::ToChronoNanoseconds(until)));
    }
  }
  if (!timers_.empty()) next = std::min(next, timers_.begin()->first);
  return next;
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
      while (queue_.empty() && !stopping_ && !tick_soon_ && Clock::now() < NextTurnTime()) {
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

core::Effects Coordinator::StepTimed(const core::Event& event, absl::Time now) {
  const int64_t passes = core_->counters().scheduler_passes;
  const Clock::time_point start = Clock::now();
  core::Effects effects = core_->Step(event, now);
  if (core_->counters().scheduler_passes != passes) observer_->SchedulerPassed(Since(start));
  return effects;
}

absl::Status Coordinator::RefusalOf(const core::Event& event) const {
  const auto* submitted = std::get_if<core::JobSubmitted>(&event);
  if (submitted == nullptr || core_->FindRequest(submitted->job.request_id)) return absl::OkStatus();
  const absl::StatusOr<int64_t> free_bytes = store_->FreeBytes();
  if (!free_bytes.ok()) return free_bytes.status();
  if (*free_bytes >= options_.free_bytes_min) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      fmt::format("no new jobs: the disk of the server's database has {} MiB left, less than {}; what runs goes on",
                  *free_bytes >> 20, options_.free_bytes_min >> 20));
}

absl::Status Coordinator::Commit(const core::Transaction& transaction) {
  if (transaction.empty()) return absl::OkStatus();
  const Clock::time_point start = Clock::now();
  absl::Status committed = store_->Commit(transaction);
  if (committed.ok()) observer_->Committed(transaction, Since(start));
  return committed;
}

void Coordinator::LoseCore(const absl::Status& cause) {
  spdlog::error("cannot store: {}; starting again from the store", Text(cause));
  core_.reset();
  lost_ = cause;
  tick_soon_ = false;
  next_tick_ = Clock::now() + absl::ToChronoNanoseconds(options_.reload_after);
  if (absl::IsInternal(cause)) {
    next_tick_ = Clock::now() + std::chrono::hours(24);  // the program ends; nothing will be loaded again
    if (options_.on_fatal) options_.on_fatal(cause);
  }
}

bool Coordinator::TickIsDue(bool idle) const {
  const Clock::time_point now = Clock::now();
  if (now >= next_tick_) return true;
  if (!idle) return false;
  return tick_soon_ || (Now() >= core_->NextDeadline() && now >= last_tick_ + kTickDistanceMin);
}

void Coordinator::Turn(std::vector<Item> items, bool idle, const std::vector<std::function<void()>>& timers) {
  if (core_ == nullptr && Clock::now() >= next_tick_ && !absl::IsInternal(lost_)) {
    if (absl::Status reloaded = Reload(); !reloaded.ok()) {
      LoseCore(reloaded);
    } else {
      spdlog::info("the store works again");
      wake_ups_.WakeAll();
    }
  }
  const bool has_core = core_ != nullptr;
  core::Transaction transaction;
  std::vector<Answer> answers;
  std::vector<QueryCallback> queries;
  std::vector<std::string> changed;
  const auto step = [&](const core::Event& event) {
    core::Effects effects = StepTimed(event, Now());
    transaction.Append(std::move(effects.transaction));
    for (const WorkerId& worker_id : effects.changed_workers) changed.push_back(WorkerName(worker_id));
    for (const JobId& job_id : effects.changed_jobs) changed.push_back(job_id.value());
    tick_soon_ = tick_soon_ || effects.tick_soon;
    return std::move(effects.reply);
  };

  for (Item& item : items) {
    if (QueryCallback* query = std::get_if<QueryCallback>(&item)) {
      queries.push_back(std::move(*query));
      continue;
    }
    Sending& sending = std::get<Sending>(item);
    core::Reply reply;
    if (absl::Status refused = has_core ? RefusalOf(sending.event) : absl::OkStatus(); !refused.ok()) {
      reply = core::SubmitReply{refused, {}, false};
    } else if (has_core) {
      reply = step(sending.event);
    }
    answers.push_back({std::move(sending.callback), std::move(reply)});
  }
  if (has_core && TickIsDue(idle)) {
    tick_soon_ = false;
    step(core::Tick{});
    last_tick_ = Clock::now();
    next_tick_ = last_tick_ + absl::ToChronoNanoseconds(options_.tick);
  }

  absl::Status failed;
  if (!has_core) {
    failed = Unavailable(lost_);
  } else if (absl::Status committed = Commit(transaction); !committed.ok()) {
    LoseCore(committed);
    failed = CommitError(committed);
  }
  for (Answer& answer : answers) {
    if (failed.ok()) {
      answer.callback(std::move(answer.reply), core_.get());
    } else {
      answer.callback(failed, nullptr);
    }
  }
  for (const QueryCallback& query : queries) {
    if (failed.ok()) {
      query(core_.get());
    } else {
      query(failed);
    }
  }
  if (failed.ok()) {
    std::sort(changed.begin(), changed.end());
    changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
    for (const std::string& name : changed) wake_ups_.Wake(name);
  }
  for (const std::function<void()>& timer : timers) timer();
}

}  // namespace longspan::rpc
