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
  const auto known = queues_.find(event.name);
  const QueueEntry before = known == queues_.end() ? QueueEntry() : known->second;
  Queue queue = WithUse(before, options_.scheduler.usage_half_life, now_);
  queue.name = event.name;
  queue.weight = event.weight.value_or(queue.weight);
  queue.slots_max = event.slots_max.value_or(queue.slots_max);
  queue.waiting_max = event.waiting_max.value_or(queue.waiting_max);
  queue.run_time_default = event.run_time_default.value_or(queue.run_time_default);
  if (queue.name.empty() || !(queue.weight > 0) || !std::isfinite(queue.weight) || queue.slots_max < 0 ||
      queue.waiting_max < 0 || queue.run_time_default <= absl::ZeroDuration()) {
    effects_.reply = CommandReply{absl::InvalidArgumentError(
        "a queue needs a name, a weight above 0, limits of at least 0 and a default run time above 0")};
    return;
  }
  queues_[queue.name].queue = queue;
  touched_queues_.insert(queue.name);
  pass_due_ = true;
  effects_.reply = CommandReply{};
}

namespace {

void AddShares(std::vector<QueueView>& views) {
  const auto is_active = [](const QueueView& view) { return view.slots_held > 0 || view.waiting > 0; };
  double used = 0, weight = 0;
  for (const QueueView& view : views) {
    used += view.queue.used_slot_seconds;
    if (is_active(view)) weight += view.queue.weight;
  }
  for (QueueView& view : views) {
    if (used > 0) view.used_share = view.queue.used_slot_seconds / used;
    if (is_active(view)) view.expected_share = view.queue.weight / weight;
  }
}

}  // namespace

std::vector<QueueView> Core::ListQueues(absl::Time now) const {
  std::vector<QueueView> views;
  for (const auto& [name, entry] : state_->queues_) {
    const Queue queue = State::WithUse(entry, state_->options_.scheduler.usage_half_life, now);
    views.push_back({queue, entry.slots_held, entry.waiting, 0, 0});
  }
  AddShares(views);
  return views;
}

}  // namespace longspan::core
