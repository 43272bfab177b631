// Carries messages between the server, the workers and the clients, badly: while faults last it loses, doubles, delays
// and so reorders them, and cuts a direction between two ends for a while. A message that is under way when the cut
// begins is lost too. In the calm everything arrives within 20 ms, and messages may still overtake one another.
#pragma once

#include <functional>
#include <map>
#include <utility>

#include "tests/sim/world.h"

namespace longspan::sim {

class Network {
 public:
  using End = int;
  static constexpr End kServer = 0;  // workers are 1, 2, ...
  static constexpr End kClient = 1000;

  explicit Network(World* world) : world_(world) {}

  // `deliver` runs when the message arrives: never, once or twice.
  void Send(End from, End to, std::function<void()> deliver);
  // Until `until` nothing goes from one to the other; the way back is another matter.
  void Cut(End from, End to, absl::Time until);
  void Heal() { cuts_.clear(); }

 private:
  bool IsCut(End from, End to) const;
  void Carry(End from, End to, absl::Duration delay, std::function<void()> deliver);

  World* const world_;
  std::map<std::pair<End, End>, absl::Time> cuts_;
};

}  // namespace longspan::sim
