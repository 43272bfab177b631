#include "tests/sim/network.h"

namespace longspan::sim {

bool Network::IsCut(End from, End to) const {
  if (cuts_.empty()) return false;
  const auto found = cuts_.find({from, to});
  return found != cuts_.end() && world_->timeline.now() < found->second;
}

void Network::Cut(End from, End to, absl::Time until) {
  absl::Time& end = cuts_[{from, to}];
  end = std::max(end, until);
}

void Network::Carry(End from, End to, absl::Duration delay, std::function<void()> deliver) {
  world_->timeline.After(delay, [this, from, to, deliver = std::move(deliver)] {
    if (!IsCut(from, to)) deliver();
  });
}

void Network::Send(End from, End to, std::function<void()> deliver) {
  Random& random = world_->random;
  const Faults& faults = world_->faults;
  if (IsCut(from, to) || random.Chance(faults.message_lost)) return;
  absl::Duration delay = random.Between(absl::Milliseconds(1), absl::Milliseconds(20));
  if (random.Chance(faults.message_doubled)) {
    Carry(from, to, random.Between(absl::Milliseconds(1), absl::Seconds(8)), deliver);
  }
  if (random.Chance(faults.message_delayed)) delay = random.Between(absl::Milliseconds(50), absl::Seconds(4));
  Carry(from, to, delay, std::move(deliver));
}

}  // namespace longspan::sim
