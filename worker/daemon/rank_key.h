// Which rank of which attempt: the name under which a daemon keeps everything about one trainer process.
#pragma once

#include <fmt/format.h>

#include <compare>
#include <cstdint>
#include <string>

namespace longspan::worker {

struct RankKey {
  std::string job_id;
  int64_t attempt = 0;
  int64_t rank = 0;

  auto operator<=>(const RankKey&) const = default;
};

// "job-1/2 rank 0", as in every log line.
inline std::string ToString(const RankKey& key) {
  return fmt::format("{}/{} rank {}", key.job_id, key.attempt, key.rank);
}

// The key of any message that names a rank.
template <class Message>
RankKey KeyOf(const Message& message) {
  return RankKey{message.job_id(), message.attempt(), message.rank()};
}

}  // namespace longspan::worker
