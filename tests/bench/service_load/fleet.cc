#include "tests/bench/service_load/fleet.h"

#include <fmt/format.h>

#include <algorithm>

namespace longspan::load {
namespace {

// Between looks for a change of the step time.
constexpr absl::Duration kWaitMax = absl::Milliseconds(200);

absl::Time Now() { return absl::Now(); }

}  // namespace

Fleet::~Fleet() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    for (auto& [call, ignored] : in_flight_) call->context.TryCancel();
  }
  changed_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

void Fleet::Start(int64_t workers, int64_t slots) {
  const absl::Time now = Now();
  for (int64_t i = 0; i < workers; ++i) {
    workers_.push_back(std::make_unique<LoadWorker>(
        fmt::format("load-{:04}", i), slots, i, address_,
        [this](LoadWorker* worker, std::unique_ptr<SynchronizeCall> call) { Send(worker, std::move(call)); }));
    next_step_.push_back(absl::InfiniteFuture());
    step_time_of_.push_back(absl::ZeroDuration());
    // One after the other, a millisecond apart.
    scheduled_.push_back(now + absl::Milliseconds(i));
    turns_.push({scheduled_.back(), static_cast<size_t>(i)});
  }
  thread_ = std::thread([this] { Loop(); });
}

bool Fleet::WaitFor(const std::function<bool()>& reached, absl::Duration timeout) {
  const absl::Time end = Now() + timeout;
  while (!reached()) {
    if (Now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}
bool Fleet::WaitRegistered(absl::Duration timeout) {
  return WaitFor([&] { return registered_ == static_cast<int64_t>(workers_.size()); }, timeout);
}
bool Fleet::WaitRunning(int64_t ranks, absl::Duration timeout) {
  return WaitFor([&] { return running_ranks_ >= ranks; }, timeout);
}

void Fleet::SetStepsAtOnce(StepsAtOnce steps) {
  MutexLock lock(mutex_);
  steps_at_once_ = std::make_shared<const StepsAtOnce>(std::move(steps));
}

void Fleet::ResetStatistics() {
  MutexLock lock(mutex_);
  calls_ = news_ = 0;
  failures_.clear();
  news_latency_ = Latencies();
}

nlohmann::json Fleet::Statistics() {
  MutexLock lock(mutex_);
  nlohmann::json failures = nlohmann::json::object();
  for (const auto& [code, count] : failures_) failures[std::to_string(code)] = count;
  return {{"calls", calls_},
          {"news", news_},
          {"failures", failures},
          {"news_latency_ms", news_latency_.ToJson()},
          {"running_ranks", running_ranks_.load()}};
}

void Fleet::Send(LoadWorker* worker, std::unique_ptr<SynchronizeCall> call) {
  SynchronizeCall* const raw = call.release();
  {
    MutexLock lock(mutex_);
    if (stopping_) {
      delete raw;
      return;
    }
    in_flight_[raw] = 1;
  }
  worker->stub().async()->Synchronize(&raw->context, &raw->request, &raw->response,
                                      [this, worker, raw](grpc::Status status) {
                                        raw->status = std::move(status);
                                        MutexLock lock(mutex_);
                                        in_flight_.erase(raw);
                                        inbox_.push_back({worker, std::unique_ptr<SynchronizeCall>(raw)});
                                        changed_.NotifyAll();
                                      });
}

void Fleet::Take(const Answered& answered, absl::Time now) {
  LoadWorker& worker = *answered.worker;
  const bool was_registered = worker.registered();
  const int64_t ranks_before = worker.running_ranks();
  worker.TakeAnswer(*answered.call, now);
  running_ranks_ += worker.running_ranks() - ranks_before;
  registered_ += worker.registered() && !was_registered;
  MutexLock lock(mutex_);
  ++calls_;
  if (!answered.call->status.ok()) ++failures_[answered.call->status.error_code()];
  if (!answered.call->brings_news) return;
  ++news_;
  if (answered.call->status.ok()) news_latency_.Add(now - answered.call->sent);
}

void Fleet::StepIfDue(size_t index, absl::Time now) {
  const absl::Duration step_time = absl::Nanoseconds(step_time_nanoseconds_.load());
  if (step_time == absl::ZeroDuration()) return;
  absl::Time& next = next_step_[index];
  if (step_time_of_[index] !=
      step_time) {  // spread over the first step, also after an overload that brought them together
    step_time_of_[index] = step_time;
    next = now + step_time * (static_cast<double>(index) / static_cast<double>(workers_.size()));
  }
  if (next > now) return;
  LoadWorker& worker = *workers_[index];
  const int64_t ranks_before = worker.running_ranks();
  std::shared_ptr<const StepsAtOnce> steps;
  {
    MutexLock lock(mutex_);
    steps = steps_at_once_;
  }
  worker.Step(*steps, now);
  running_ranks_ += worker.running_ranks() - ranks_before;
  next = std::max(next + step_time, now);  // behind: as fast as it goes
}

absl::Time Fleet::NextOf(size_t index) const {
  return std::min({workers_[index]->NextTurn(), next_step_[index], Now() + kWaitMax});
}

std::vector<Fleet::Answered> Fleet::WaitForWork() {
  const absl::Time due = turns_.empty() ? Now() + kWaitMax : turns_.top().due;
  MutexLock lock(mutex_);
  if (inbox_.empty() && !stopping_) changed_.WaitUntil(mutex_, absl::ToChronoTime(due));
  return std::exchange(inbox_, {});
}

void Fleet::Loop() {
  std::map<LoadWorker*, size_t> index_of;
  for (size_t i = 0; i < workers_.size(); ++i) index_of[workers_[i].get()] = i;
  while (true) {
    const std::vector<Answered> answers = WaitForWork();
    {
      MutexLock lock(mutex_);
      if (stopping_ && in_flight_.empty() && inbox_.empty()) return;
    }
    const absl::Time now = Now();
    std::vector<size_t> touched;
    for (const Answered& answered : answers) {
      Take(answered, now);
      touched.push_back(index_of.at(answered.worker));
    }
    while (!turns_.empty() && turns_.top().due <= now) {
      const Turn turn = turns_.top();
      turns_.pop();
      if (scheduled_[turn.worker] == turn.due) touched.push_back(turn.worker);
    }
    for (const size_t index : touched) {
      StepIfDue(index, now);
      workers_[index]->Turn(now);
      scheduled_[index] = std::max(NextOf(index), now + absl::Milliseconds(1));
      turns_.push({scheduled_[index], index});
    }
  }
}

}  // namespace longspan::load
