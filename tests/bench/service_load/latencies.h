// How long the calls of one phase took.
#pragma once

#include <absl/time/time.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

namespace longspan::load {

// Not thread-safe.
class Latencies {
 public:
  void Add(absl::Duration took) { milliseconds_.push_back(absl::ToDoubleMilliseconds(took)); }
  void Append(const Latencies& other) {
    milliseconds_.insert(milliseconds_.end(), other.milliseconds_.begin(), other.milliseconds_.end());
  }

  // {"count": n, "p50": ms, "p99": ms, "max": ms}; only the count when there are none.
  nlohmann::json ToJson() const {
    nlohmann::json json = {{"count", milliseconds_.size()}};
    if (milliseconds_.empty()) return json;
    std::vector<double> sorted = milliseconds_;
    std::sort(sorted.begin(), sorted.end());
    const auto at = [&](double share) { return sorted[static_cast<size_t>(share * (sorted.size() - 1))]; };
    json["p50"] = at(0.5);
    json["p99"] = at(0.99);
    json["max"] = sorted.back();
    return json;
  }

 private:
  std::vector<double> milliseconds_;
};

}  // namespace longspan::load
