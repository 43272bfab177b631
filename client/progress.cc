#include "client/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "client/output.h"
#include "proto/support/enum_words.h"

namespace longspan::client {
namespace {

std::string Bar(double part, int columns, bool utf8) {
  const int full = std::clamp(static_cast<int>(part * columns), 0, columns);
  std::string bar;
  for (int i = 0; i < columns; ++i) bar += i < full ? (utf8 ? "█" : "#") : (utf8 ? "░" : "-");
  return "[" + bar + "]";
}

std::string RateText(double rate) {
  if (rate >= 1e6) return fmt::format("{:.1f}M tok/s", rate / 1e6);
  if (rate >= 1e4) return fmt::format("{:.1f}k tok/s", rate / 1e3);
  return fmt::format("{:.0f} tok/s", rate);
}

}  // namespace

void Pace::Add(const v1::ProgressSample& sample) {
  if (sample.attempt() != attempt_ || sample.phase() != phase_) moments_.clear();
  attempt_ = sample.attempt();
  phase_ = sample.phase();
  steps_ = sample.steps();
  const auto tokens = sample.values().find("tokens_per_second");
  if (tokens != sample.values().end()) tokens_per_second_ = tokens->second;
  moments_.push_back({sample.step(), static_cast<double>(sample.time().seconds()) + sample.time().nanos() * 1e-9});
  if (moments_.size() > kMomentsMax) moments_.pop_front();
}

double Pace::SecondsLeft() const {
  if (moments_.size() < 2) return -1;
  const double seconds = moments_.back().seconds - moments_.front().seconds;
  const int64_t steps = moments_.back().step - moments_.front().step;
  if (steps <= 0 || seconds <= 0) return -1;
  return static_cast<double>(steps_ - moments_.back().step) * seconds / static_cast<double>(steps);
}

double Pace::TokensPerSecond() const { return tokens_per_second_; }

std::string PhaseWord(v1::Phase phase) {
  std::string word = WordOf(phase);
  std::transform(word.begin(), word.end(), word.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return word;
}

std::string ProgressLine(const v1::ProgressSample& sample, const Pace& pace, bool with_bar, bool utf8, int width) {
  const double part = sample.steps() > 0 ? static_cast<double>(sample.step()) / static_cast<double>(sample.steps()) : 0;
  const std::string head = fmt::format("{:<9}", PhaseWord(sample.phase()));
  std::string tail = fmt::format("{}/{}  {:>3.0f}%", sample.step(), sample.steps(), std::floor(part * 100));
  if (const auto loss = sample.values().find("loss"); loss != sample.values().end())
    tail += fmt::format("  loss {:.4f}", loss->second);
  if (sample.phase() == v1::PHASE_TRAIN && pace.TokensPerSecond() > 0) tail += "  " + RateText(pace.TokensPerSecond());
  if (sample.step() < sample.steps() && pace.SecondsLeft() >= 0)
    tail += fmt::format("  {} left", DurationText(pace.SecondsLeft()));
  if (!with_bar) return head + tail;
  const int room = width - static_cast<int>(head.size() + tail.size()) - 5;
  return Shortened(head + (room >= 5 ? Bar(part, std::min(room, 40), utf8) + "  " : "") + tail,
                   static_cast<size_t>(std::max(10, width - 1)));
}

}  // namespace longspan::client
