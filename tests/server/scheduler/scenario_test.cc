// Runs scenarios/: prose, lines of scenario.h, "----", what came out. LONGSPAN_REWRITE=1 writes what came out into the
// files.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/server/scheduler/scenario.h"
#include "tests/test_paths.h"

namespace longspan::scheduler {
namespace {

// The file with what came out in the place of what was expected.
std::string Play(const std::string& text) {
  Scenario scenario;
  std::istringstream lines(text);
  std::string result, output;
  bool expecting = false;
  for (std::string line; std::getline(lines, line);) {
    if (expecting) {
      if (!line.empty()) continue;
      expecting = false;
    } else if (line == "----") {
      result += "----\n" + output;
      output.clear();
      expecting = true;
      continue;
    } else if (!line.empty() && line[0] != '#') {
      output += scenario.Run(line);
    }
    result += line + "\n";
  }
  return result;
}

class ScenarioTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ScenarioTest, ComesOutAsWritten) {
  const std::filesystem::path path = testing::SourceDir() / "tests/server/scheduler/scenarios" / (GetParam() + ".txt");
  std::ifstream file(path);
  ASSERT_TRUE(file) << path;
  std::stringstream content;
  content << file.rdbuf();
  const std::string played = Play(content.str());
  if (std::getenv("LONGSPAN_REWRITE") != nullptr) {
    std::ofstream(path) << played;
    return;
  }
  EXPECT_EQ(played, content.str()) << "LONGSPAN_REWRITE=1 takes what came out as right";
}

INSTANTIATE_TEST_SUITE_P(Scheduler, ScenarioTest,
                         ::testing::Values("placement", "racks", "requirements", "order_and_fair_share", "quotas",
                                           "backfill", "preemption", "elastic", "delays_and_restarts"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace longspan::scheduler
