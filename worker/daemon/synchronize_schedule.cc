#include "worker/daemon/synchronize_schedule.h"

#include <algorithm>

namespace longspan::worker {

absl::Time SynchronizeSchedule::NextCall(absl::Time change_due, absl::Time progress_due) const {
  if (in_flight_ >= options_.calls_in_flight_max) return absl::InfiniteFuture();
  absl::Time wanted = change_due;
  if (news_in_flight_.empty()) wanted = std::min(wanted, progress_due);
  if (in_flight_ == 0) wanted = std::min(wanted, next_);
  return std::max({wanted, last_sent_ + options_.spacing_min, not_before_});
}

int64_t SynchronizeSchedule::OnSent(bool brings_news, absl::Time now) {
  last_sent_ = now;
  ++in_flight_;
  ++sequence_;
  if (brings_news) news_in_flight_.insert(sequence_);
  return sequence_;
}

void SynchronizeSchedule::OnEnded(int64_t sequence) {
  --in_flight_;
  news_in_flight_.erase(sequence);
}

bool SynchronizeSchedule::OnAnswer(int64_t sequence, absl::Duration call_again, absl::Time now) {
  OnEnded(sequence);
  if (sequence <= newest_answered_) return false;
  newest_answered_ = sequence;
  failures_ = 0;
  not_before_ = absl::InfinitePast();
  next_ = now + std::max(call_again, absl::ZeroDuration());
  return true;
}

void SynchronizeSchedule::OnFailure(int64_t sequence, absl::Time now) {
  OnEnded(sequence);
  // A newer call is under way: the server may have ended this one because of it.
  if (sequence < sequence_) return;
  const int64_t doublings = std::min<int64_t>(failures_++, 30);
  const absl::Duration backoff =
      std::min(options_.backoff_max, options_.backoff_min * static_cast<double>(1LL << doublings));
  const double jitter = std::uniform_real_distribution<double>(0.5, 1.0)(random_);
  not_before_ = now + backoff * jitter;
  next_ = not_before_;
}

}  // namespace longspan::worker
