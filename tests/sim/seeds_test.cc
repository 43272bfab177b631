// One part of the seeds that every build runs; which, is said by CMakeLists.txt.
#include "tests/sim/seeds.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace longspan::sim {
namespace {

TEST(SeedsTest, TheInvariantsHold) {
  const SeedsResult result = RunSeeds(SeedsFromEnvironment({LONGSPAN_SIM_FROM, LONGSPAN_SIM_TO}));
  EXPECT_FALSE(result.failed) << result.report;
  EXPECT_GT(result.totals.jobs, 0);
  const SimulatedCluster::Totals& t = result.totals;
  fmt::print(
      "{} seeds: {} jobs, {} attempts, {} steps, {} commits, {} starts of the server, {} events, {} checks, "
      "{:.0f} s of virtual time\n",
      result.seeds, t.jobs, t.attempts, t.steps, t.commits, t.server_starts, t.events, t.checks, t.virtual_seconds);
}

}  // namespace
}  // namespace longspan::sim
