// When the daemon calls Synchronize.
//
// Pure, not thread-safe. A call normally hangs at the server (long poll), so one is nearly always in flight. A change
// on the worker sends a newer one past it, which makes the server end the older; failures wait with a growing, jittered
// backoff that no change shortens. The server answers a call with news as soon as it has stored them, so progress waits
// for the answer to the progress before: a server with more to do than it can is told less often, and all at once.
#pragma once

#include <absl/time/time.h>

#include <cstdint>
#include <random>
#include <set>

namespace longspan::worker {

struct SynchronizeScheduleOptions {
  absl::Duration call_deadline = absl::Seconds(15);  // must be above the server's long poll
  absl::Duration backoff_min = absl::Milliseconds(200);
  absl::Duration backoff_max = absl::Seconds(5);        // well below the lease
  absl::Duration spacing_min = absl::Milliseconds(20);  // between two calls, so that a burst of changes is one report
  int64_t calls_in_flight_max = 4;
  uint64_t seed = 0;  // of the jitter
};

class SynchronizeSchedule {
 public:
  explicit SynchronizeSchedule(SynchronizeScheduleOptions options) : options_(options), random_(options.seed) {}

  // When the next call should leave, if a change wants to be told at `change_due`, and progress at `progress_due`
  // (InfiniteFuture: there is none).
  absl::Time NextCall(absl::Time change_due, absl::Time progress_due) const;

  // The sequence number of the call that leaves now. `brings_news`: see proto/support/brings_news.h.
  int64_t OnSent(bool brings_news, absl::Time now);

  // True when the answer is newer than every one before, and to be acted on.
  bool OnAnswer(int64_t sequence, absl::Duration call_again, absl::Time now);

  void OnFailure(int64_t sequence, absl::Time now);

  // Failures in a row.
  int64_t failures() const { return failures_; }
  int64_t calls_in_flight() const { return in_flight_; }

 private:
  void OnEnded(int64_t sequence);

  const SynchronizeScheduleOptions options_;
  std::mt19937_64 random_;
  int64_t sequence_ = 0;
  int64_t newest_answered_ = 0;
  int64_t in_flight_ = 0;
  std::set<int64_t> news_in_flight_;  // sequence numbers
  int64_t failures_ = 0;
  absl::Time last_sent_ = absl::InfinitePast();
  absl::Time next_ = absl::InfinitePast();
  absl::Time not_before_ = absl::InfinitePast();
};

}  // namespace longspan::worker
