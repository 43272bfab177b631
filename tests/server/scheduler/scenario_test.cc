// Runs scenarios/: prose, lines of scenario.h, "----", what came out. LONGSPAN_REWRITE=1 writes what came out into the
// files.
#include <gtest/gtest.h>

#include "tests/server/scheduler/scenario.h"
#include "tests/test_paths.h"
#include "tests/transcript.h"

namespace longspan::scheduler {
namespace {

class ScenarioTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ScenarioTest, ComesOutAsWritten) {
  Scenario scenario;
  testing::ExpectTranscript(testing::SourceDir() / "tests/server/scheduler/scenarios" / (GetParam() + ".txt"),
                            [&](const std::string& command) { return scenario.Run(command); });
}

INSTANTIATE_TEST_SUITE_P(Scheduler, ScenarioTest,
                         ::testing::Values("placement", "racks", "requirements", "order_and_fair_share", "quotas",
                                           "backfill", "preemption", "elastic", "delays_and_restarts"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace longspan::scheduler
