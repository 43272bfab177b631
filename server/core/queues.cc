// Queues: their limits, and what they have used of the cluster.
#include <fmt/format.h>

#include <cmath>

#include "server/core/core_state.h"

namespace longspan::core {

Core::State::QueueEntry& Core::State::QueueOf(const Job& job) {
  QueueEntry& entry = queues_[job.queue];
  entry.queue.name = job.queue;
  return entry;
}

const Queue& Core::State::QueueRules(const std::string& name) const {
  static const Queue kUnconfigured;
  const auto it = queues_.find(name);
  return it == queues_.end() ? kUnconfigured : it->second.queue;
}

// Slots held since used_time count by the same decay: their integral is exact, however long nothing changed.
Queue Core::State::WithUse(const QueueEntry& entry, absl::Duration half_life, absl::Time now) {
  Queue queue = entry.queue;
  const double held = static_cast<double>(entry.slots_held);
  if (queue.used_time > absl::InfinitePast() && now > queue.used_time) {
    const double decay = std::exp2(-absl::FDivDuration(now - queue.used_time, half_life));
    queue.used_slot_seconds =
        queue.used_slot_seconds * decay + held * absl::ToDoubleSeconds(half_life) / std::log(2.0) * (1 - decay);
  }
  queue.used_time = now;
  return queue;
}

void Core::State::SlotsHeldChange(const Job& job, int64_t by) {
  QueueEntry& entry = QueueOf(job);
  entry.queue = WithUse(entry, options_.scheduler.usage_half_life, now_);
  entry.slots_held += by;
  touched_queues_.insert(entry.queue.name);
}

void Core::State::On(const QueueConfigured& event) {
  const Queue& wanted = event.queue;
  if (wanted.name.empty() || !(wanted.weight > 0) || wanted.slots_max < 0 || wanted.waiting_max < 0 ||
      wanted.run_time_default <= absl::ZeroDuration()) {
    effects_.reply = CommandReply{absl::InvalidArgumentError(
        "a queue needs a name, a weight above 0, limits of at least 0 and a default run time above 0")};
    return;
  }
  QueueEntry& entry = queues_[wanted.name];
  Queue queue = WithUse(entry, options_.scheduler.usage_half_life, now_);
  queue.name = wanted.name;
  queue.weight = wanted.weight;
  queue.slots_max = wanted.slots_max;
  queue.waiting_max = wanted.waiting_max;
  queue.run_time_default = wanted.run_time_default;
  entry.queue = queue;
  touched_queues_.insert(queue.name);
  pass_due_ = true;
  effects_.reply = CommandReply{};
}

std::vector<QueueView> Core::ListQueues(absl::Time now) const {
  std::vector<QueueView> views;
  for (const auto& [name, entry] : state_->queues_) {
    const Queue queue = State::WithUse(entry, state_->options_.scheduler.usage_half_life, now);
    views.push_back({queue, entry.slots_held, entry.waiting});
  }
  return views;
}

}  // namespace longspan::core
