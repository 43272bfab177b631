#include "server/core/transitions.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

#include "longspan/v1/fleet_service.pb.h"
#include "longspan/v1/job.pb.h"
#include "tests/test_paths.h"

namespace longspan::core {
namespace {

TEST(TransitionsTest, TerminalStatesHaveNoWayOutAndAllOthersHave) {
  for (const JobState state : kAllJobStates) {
    bool has_way_out = false;
    for (const JobState to : kAllJobStates) has_way_out = has_way_out || IsAllowed(state, to);
    EXPECT_EQ(has_way_out, !IsTerminal(state)) << Name(state);
  }
}

TEST(TransitionsTest, EveryStateButTheFirstIsReachedFromQueued) {
  std::set<JobState> reached = {JobState::kQueued};
  for (size_t before = 0; before != reached.size();) {
    before = reached.size();
    for (const Transition& transition : kTransitions) {
      if (reached.contains(transition.from)) reached.insert(transition.to);
    }
  }
  EXPECT_EQ(reached.size(), std::size(kAllJobStates));
}

TEST(TransitionsTest, EveryUnfinishedJobCanStillBeCancelled) {
  for (const JobState state : kAllJobStates) {
    if (IsTerminal(state) || state == JobState::kCancelling) continue;
    EXPECT_TRUE(IsAllowed(state, JobState::kCancelled) || IsAllowed(state, JobState::kCancelling)) << Name(state);
  }
}

TEST(TransitionsTest, TheReadmePrintsThisTable) {
  std::ifstream file(testing::SourceDir() / "proto/README.md");
  std::stringstream content;
  content << file.rdbuf();
  const std::string text = content.str();
  const std::string begin = "<!-- transitions:begin -->\n";
  const size_t at = text.find(begin);
  const size_t end = text.find("<!-- transitions:end -->");
  ASSERT_TRUE(at != std::string::npos && end != std::string::npos) << "proto/README.md lacks the marks of the table";
  EXPECT_EQ(text.substr(at + begin.size(), end - at - begin.size()), TransitionsAsMarkdown());
}

// The core's numbers are those on the wire.
TEST(StatesTest, HaveTheNumbersOfTheMessages) {
  for (const JobState state : kAllJobStates) {
    EXPECT_EQ(v1::JobState_Name(static_cast<v1::JobState>(state)), std::string("JOB_STATE_") + Name(state));
  }
  EXPECT_EQ(static_cast<size_t>(v1::JobState_descriptor()->value_count()), std::size(kAllJobStates) + 1);
  for (int phase = 0; phase < v1::Phase_descriptor()->value_count(); ++phase) {
    EXPECT_EQ(v1::Phase_Name(static_cast<v1::Phase>(phase)), std::string("PHASE_") + Name(static_cast<Phase>(phase)));
  }
  for (int number = 0; number < v1::FailureClass_descriptor()->value_count(); ++number) {
    EXPECT_EQ(v1::FailureClass_Name(static_cast<v1::FailureClass>(number)),
              std::string("FAILURE_CLASS_") + Name(static_cast<FailureClass>(number)));
  }
  for (int number = 1; number < v1::RankReport::State_descriptor()->value_count(); ++number) {
    EXPECT_EQ(v1::RankReport::State_Name(static_cast<v1::RankReport::State>(number)),
              std::string("STATE_") + Name(static_cast<RankState>(number)));
  }
}

}  // namespace
}  // namespace longspan::core
