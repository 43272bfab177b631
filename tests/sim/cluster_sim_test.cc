// A seed is a history; what a server alone may not do. The seeds themselves are run by seeds_test.cc.
//
// cluster_sim_test --seed N          replays one and prints its transcript
// cluster_sim_test --survey FROM-TO  a line for each seed that fails, and which invariants did how often
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>

#include "tests/sim/seeds.h"

namespace longspan::sim {
namespace {

// Nothing fails but the server, and the lease is longer than it leaves a worker without an answer, also when it dies
// twice in a row.
SimulationOptions OnlyTheServerDies(uint64_t seed) {
  SimulationOptions options = OptionsOf(seed);
  const bool sqlite = options.sqlite;
  options.faults = Faults();
  options.faults.server_crash_every = absl::Seconds(12);
  options.faults.server_crash_before_commit = 0.002;
  options.faults.server_crash_after_commit = 0.002;
  options.faults.server_crash_in_commit = sqlite ? 0.002 : 0;
  options.faults.power_cut = sqlite ? 0.5 : 0;
  options.server_away_max = absl::Seconds(1);
  options.lease = absl::Seconds(30);
  options.jobs_give_way = false;
  return options;
}

// Running attempts are adopted: one prepares, one trains. (A job that may run for two seconds only ends with the
// first.)
TEST(ClusterSimTest, AServerThatDiesCostsNoAttempt) {
  const SeedsResult result = RunSeeds(SeedsFromEnvironment({0, 300}), OnlyTheServerDies);
  ASSERT_FALSE(result.failed) << result.report;
  EXPECT_LE(result.totals.attempts, 2 * result.totals.jobs);
  EXPECT_GT(result.totals.server_starts, 4 * result.seeds);
}

TEST(ClusterSimTest, OneSeedIsOneHistory) {
  for (const uint64_t seed : {42, 47}) {  // the second on SQLite
    SimulatedCluster first(OptionsOf(seed));
    first.Run();
    const std::string history = first.History();
    SimulatedCluster second(OptionsOf(seed));
    second.Run();
    EXPECT_EQ(history, second.History());
    EXPECT_FALSE(history.empty());
  }
}

int Replay(uint64_t seed) {
  SimulationOptions options = OptionsOf(seed);
  options.transcript = true;
  SimulatedCluster cluster(options);
  cluster.Run();
  for (const std::string& line : cluster.transcript()) fmt::print("{}\n", line);
  return cluster.violation() ? 1 : 0;
}

// One line for each seed that fails, and goes on.
int Survey(const std::string& text) {
  const SeedRange range = ParseSeeds(text);
  std::map<std::string, std::pair<int64_t, uint64_t>> violations;  // how many, the first
  for (uint64_t seed = range.from; seed < range.to; ++seed) {
    const SeedsResult result = RunSeeds({seed, seed + 1});
    if (!result.failed) continue;
    const auto [it, first] = violations.try_emplace(result.violation.invariant, 0, seed);
    if (++it->second.first <= 3) fmt::print("{}: {}: {}\n", seed, result.violation.invariant, result.violation.text);
  }
  for (const auto& [invariant, found] : violations) {
    fmt::print("\"{}\" {} times, first by seed {}\n", invariant, found.first, found.second);
  }
  return violations.empty() ? 0 : 1;
}

}  // namespace
}  // namespace longspan::sim

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--seed") == 0) return longspan::sim::Replay(std::stoull(argv[2]));
  if (argc == 3 && std::strcmp(argv[1], "--survey") == 0) return longspan::sim::Survey(argv[2]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
