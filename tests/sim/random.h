// Where all chance in a simulation comes from: one generator, one seed. The distributions of the standard library
// differ from one to another, these do not.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace longspan::sim {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 0x1234567) {}

  uint64_t Next() {  // splitmix64
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  double Real() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }  // [0, 1)
  bool Chance(double probability) { return probability > 0 && Real() < probability; }
  int64_t Integer(int64_t low, int64_t high) {  // both included
    return low + static_cast<int64_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  absl::Duration Between(absl::Duration low, absl::Duration high) {
    const int64_t nanos = absl::ToInt64Nanoseconds(high - low);
    return low + absl::Nanoseconds(static_cast<int64_t>(static_cast<double>(nanos) * Real()));
  }

 private:
  uint64_t state_;
};

}  // namespace longspan::sim
