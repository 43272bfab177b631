// Runs seeds, and tells how to replay one that fails.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tests/sim/simulated_cluster.h"

namespace longspan::sim {

// Half open.
struct SeedRange {
  uint64_t from = 0;
  uint64_t to = 0;
};

SeedRange ParseSeeds(const std::string& text);  // FROM-TO
// LONGSPAN_SIM_SEED=N: that one. LONGSPAN_SIM_SEEDS=FROM-TO: these. Else `otherwise`.
SeedRange SeedsFromEnvironment(SeedRange otherwise);

struct SeedsResult {
  std::optional<uint64_t> failed;  // the first seed that did
  Violation violation;
  std::string report;  // its violation, how to replay it, the end of its transcript
  SimulatedCluster::Totals totals;
  int64_t seeds = 0;
};

// Stops at the first failure. A CHECK of the program under test that fails aborts; the seed is printed before.
SeedsResult RunSeeds(SeedRange range, SimulationOptions (*options_of)(uint64_t seed) = OptionsOf);

}  // namespace longspan::sim
