// The one virtual clock: a queue of things that happen at their times. Nothing happens between two of them, so a quiet
// minute costs nothing. Things of one time happen in the order in which they were asked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace longspan::sim {

class Timeline {
 public:
  using Work = std::function<void()>;

  absl::Time now() const { return now_; }
  static absl::Time Start() { return absl::FromUnixSeconds(1'000'000); }
  double seconds() const { return absl::ToDoubleSeconds(now_ - Start()); }

  // A time that has passed means now. Rounded up to nanoseconds, as real clocks tell them and the store keeps them.
  void At(absl::Time time, Work work) {
    const absl::Time whole =
        absl::FromUnixNanos(absl::ToUnixNanos(time + absl::Nanoseconds(1) - absl::Nanoseconds(0.25)));
    heap_.push_back({std::max(whole, now_), ++last_order_, std::move(work)});
    std::push_heap(heap_.begin(), heap_.end(), Later());
  }
  void After(absl::Duration delay, Work work) { At(now_ + delay, std::move(work)); }

  absl::Time Next() const { return heap_.empty() ? absl::InfiniteFuture() : heap_.front().time; }
  // Moves the clock to the next thing and lets it happen.
  void Run() {
    std::pop_heap(heap_.begin(), heap_.end(), Later());
    Entry entry = std::move(heap_.back());
    heap_.pop_back();
    now_ = entry.time;
    entry.work();
  }

 private:
  struct Entry {
    absl::Time time;
    uint64_t order = 0;
    Work work;
  };
  struct Later {
    bool operator()(const Entry& a, const Entry& b) const {
      return a.time != b.time ? a.time > b.time : a.order > b.order;
    }
  };

  absl::Time now_ = Start();
  uint64_t last_order_ = 0;
  std::vector<Entry> heap_;
};

}  // namespace longspan::sim
