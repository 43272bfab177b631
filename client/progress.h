// A job's progress in one line, and how much time is left. Pure.
#pragma once

#include <deque>
#include <string>

#include "longspan/v1/job.pb.h"

namespace longspan::client {

// Learns the pace of the newest samples of one phase of one attempt.
class Pace {
 public:
  void Add(const v1::ProgressSample& sample);
  // Seconds to the end of the phase; negative while unknown.
  double SecondsLeft() const;
  // Of the trainer, else 0.
  double TokensPerSecond() const;

 private:
  struct Moment {
    int64_t step;
    double seconds;
  };
  static constexpr size_t kMomentsMax = 30;

  int64_t attempt_ = 0;
  v1::Phase phase_ = v1::PHASE_UNSPECIFIED;
  int64_t steps_ = 0;
  double tokens_per_second_ = 0;
  std::deque<Moment> moments_;
};

// "train  [████████░░░░]  120/150  80%  loss 1.583  12.3k tok/s  42s left", as wide as the terminal at most. A bar only
// with `with_bar`.
std::string ProgressLine(const v1::ProgressSample& sample, const Pace& pace, bool with_bar, bool utf8, int width);

// "train" for PHASE_TRAIN.
std::string PhaseWord(v1::Phase phase);

}  // namespace longspan::client
