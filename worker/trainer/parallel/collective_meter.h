// What the collectives of a rank moved and how long they took, by kind: for progress lines and metrics.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace longspan::trainer {

enum class Collective { kAllReduce, kAllGather, kExchange };
inline constexpr std::array<Collective, 3> kCollectives = {Collective::kAllReduce, Collective::kAllGather,
                                                           Collective::kExchange};
// "all_reduce", "all_gather", "exchange".
const char* NameOf(Collective kind);

struct CollectiveUse {
  int64_t bytes = 0;  // put into all-reduces, received in all-gathers, sent in exchanges
  // At least one of them was under way, slow peers included. Of those that ended; a message of Gloo ends when it is
  // waited for.
  std::chrono::nanoseconds busy{0};
  // What computes, the caller or a GPU's stream, stood still for them. Of those that were waited for.
  std::chrono::nanoseconds waited{0};
};

// Thread-safe. Things of one kind end in the order in which they began.
class CollectiveMeter {
 public:
  using Clock = std::chrono::steady_clock;

  void Moved(Collective kind, int64_t bytes);
  // One that began then ends now.
  void Ended(Collective kind, Clock::time_point begin);
  // The caller has waited since then.
  void Waited(Collective kind, Clock::time_point since);
  CollectiveUse use(Collective kind) const;

 private:
  struct Kind {
    CollectiveUse use;
    Clock::time_point last_end;
  };
  Kind& Of(Collective kind) { return kinds_[static_cast<size_t>(kind)]; }

  mutable std::mutex mutex_;
  std::array<Kind, kCollectives.size()> kinds_;
};

}  // namespace longspan::trainer
