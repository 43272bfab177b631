#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/sim/simulated_cluster.h"

namespace longspan::sim {
namespace {

// LONGSPAN_SIM_SEEDS=FROM-TO runs others, for a longer search; the default is what every build runs.
std::pair<uint64_t, uint64_t> Seeds() {
  const char* text = std::getenv("LONGSPAN_SIM_SEEDS");
  if (text == nullptr) return {0, 300};
  const std::string range(text);
  const size_t dash = range.find('-');
  return {std::stoull(range.substr(0, dash)), std::stoull(range.substr(dash + 1))};
}

// Faults of every kind for a while, then calm: every job ends well, with every step done once more than never.
TEST(ClusterSimTest, EveryJobSucceedsWhenTheFaultsEnd) {
  const auto [from, to] = Seeds();
  int64_t jobs = 0, attempts = 0;
  for (uint64_t seed = from; seed < to; ++seed) {
    SimulationOptions options;
    options.seed = seed;
    SimulatedCluster cluster(options);
    cluster.Run();
    for (const JobId& job_id : cluster.jobs()) {
      const core::JobView view = cluster.View(job_id);
      ++jobs;
      attempts += view.job.attempt;
      const bool cancelled = cluster.WasCancelled(job_id) && view.job.state == core::JobState::kCancelled;
      ASSERT_TRUE(cancelled || view.job.state == core::JobState::kSucceeded)
          << "seed " << seed << ": " << job_id << " is " << core::Name(view.job.state) << ": " << view.job.message
          << "\n"
          << cluster.History();
      if (cancelled) continue;
      EXPECT_EQ(view.job.best_step[static_cast<int>(core::Phase::kTrain)], options.steps) << "seed " << seed;
      EXPECT_EQ(view.artifacts.size(), 1u) << "seed " << seed;
    }
  }
  RecordProperty("jobs", static_cast<int>(jobs));
  RecordProperty("attempts", static_cast<int>(attempts));
  fmt::print("{} jobs took {} attempts\n", jobs, attempts);
}

TEST(ClusterSimTest, OneSeedIsOneHistory) {
  SimulationOptions options;
  options.seed = 42;
  SimulatedCluster first(options), second(options);
  first.Run();
  second.Run();
  EXPECT_EQ(first.History(), second.History());
  EXPECT_FALSE(first.History().empty());
}

}  // namespace
}  // namespace longspan::sim
