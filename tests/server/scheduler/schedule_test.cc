// Examples. A cluster is written "a:0,1,2 b:0" (free slots; "b:0/4" has 4 in all, "-b" is draining, "!b" is down); jobs
// are "name slots [priority [submit second]]".
#include "server/scheduler/schedule.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <sstream>

namespace longspan::scheduler {
namespace {

const absl::Time kNow = absl::FromUnixSeconds(1000);

std::vector<WorkerSlots> Workers(const std::string& text) {
  std::vector<WorkerSlots> workers;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    WorkerSlots& worker = workers.emplace_back();
    worker.up = word[0] != '!';
    worker.draining = word[0] == '-';
    if (word[0] == '!' || word[0] == '-') word = word.substr(1);
    const size_t colon = word.find(':');
    worker.id = WorkerId(word.substr(0, colon));
    std::string slots = word.substr(colon + 1);
    if (const size_t slash = slots.find('/'); slash != std::string::npos) {
      worker.slot_count = std::stoll(slots.substr(slash + 1));
      slots = slots.substr(0, slash);
    }
    std::istringstream numbers(slots);
    for (std::string number; std::getline(numbers, number, ',');) worker.free_slots.push_back(std::stoll(number));
    worker.slot_count = std::max<int64_t>(worker.slot_count, static_cast<int64_t>(worker.free_slots.size()));
  }
  return workers;
}

WaitingJob Job(const std::string& text) {
  std::istringstream words(text);
  std::string name;
  WaitingJob job;
  int64_t second = 0;
  words >> name >> job.slots >> job.priority >> second;
  if (!words && text.find_first_of(' ', name.size() + 1) == std::string::npos) job.priority = 50;
  job.id = JobId(name);
  job.submit_time = absl::FromUnixSeconds(second);
  return job;
}

// "x=a0+a1; y?GANG_DOES_NOT_FIT(needs ...)"
std::string Text(const Plan& plan) {
  std::string text;
  for (const Start& start : plan.starts) {
    text += text.empty() ? "" : "; ";
    text += start.job_id.value() + "=";
    for (size_t i = 0; i < start.ranks.size(); ++i) {
      text += fmt::format("{}{}{}", i == 0 ? "" : "+", start.ranks[i].worker_id, start.ranks[i].slot);
    }
  }
  for (const Wait& wait : plan.waits) {
    text += text.empty() ? "" : "; ";
    text += fmt::format("{}?{} {}({})", wait.position, wait.job_id, wait.reason, wait.message);
  }
  return text;
}

struct Example {
  const char* name;
  const char* workers;
  std::vector<const char*> jobs;
  const char* plan;
};

void PrintTo(const Example& example, std::ostream* out) { *out << example.name; }

class ScheduleTest : public ::testing::TestWithParam<Example> {};

TEST_P(ScheduleTest, GivesThePlan) {
  Snapshot snapshot;
  snapshot.workers = Workers(GetParam().workers);
  for (const char* job : GetParam().jobs) snapshot.jobs.push_back(Job(job));
  EXPECT_EQ(Text(Schedule(snapshot, kNow)), GetParam().plan);
}

INSTANTIATE_TEST_SUITE_P(
    Examples, ScheduleTest,
    ::testing::Values(
        Example{"OneWorkerIfItFits", "a:0,1 b:0,1,2", {"x 3"}, "x=b0+b1+b2"},
        Example{"BestFit", "a:0,1,2,3 b:0,1 c:0,1,2", {"x 2"}, "x=b0+b1"},
        Example{"FewestWorkersElse", "a:0 b:0,1 c:0,1,2", {"x 5"}, "x=c0+c1+c2+b0+b1"},
        Example{"TheRemainderGoesWhereItFitsBest", "a:0 b:0,1 c:0,1,2", {"x 4"}, "x=c0+c1+c2+a0"},
        Example{"AllOrNothing", "a:0/4 b:0", {"x 3"}, "1?x GANG_DOES_NOT_FIT(needs 3 slots, 2 free)"},
        Example{"PriorityFirst", "a:0", {"x 1 50 1", "y 1 60 2"}, "y=a0; 1?x GANG_DOES_NOT_FIT(needs 1 slot, 0 free)"},
        Example{"ThenSubmitTime", "a:0", {"x 1 50 2", "y 1 50 1"}, "y=a0; 1?x GANG_DOES_NOT_FIT(needs 1 slot, 0 free)"},
        Example{"ThenId", "a:0", {"y 1 50 1", "x 1 50 1"}, "x=a0; 1?y GANG_DOES_NOT_FIT(needs 1 slot, 0 free)"},
        Example{"ALargeOneIsNotStarved",
                "a:0/2 b:0",
                {"large 3 50 1", "small 1 50 2"},
                "1?large GANG_DOES_NOT_FIT(needs 3 slots, 2 free); 2?small BEHIND_IN_QUEUE(needs 1 slot, waits behind "
                "large, "
                "which needs 3)"},
        Example{"AnImpossibleOneHoldsNobodyBack",
                "a:0,1",
                {"huge 9 90", "small 1"},
                "small=a0; 1?huge GANG_EXCEEDS_CLUSTER(needs 9 slots, all workers that are there have 2)"},
        Example{"PrepareNeedsNoSlot",
                "a:/1",
                {"x 1 50 1", "p 0 50 2"},
                "p=a-1; 1?x GANG_DOES_NOT_FIT(needs 1 slot, 0 free)"},
        Example{
            "PreparesAreSpreadAndBounded",
            "a:0/1 b:0,1",
            {"p 0", "q 0", "r 0", "s 0"},
            "p=b-1; q=a-1; r=b-1; 1?s WORKERS_PREPARING(waits to prepare its data: every worker prepares as many jobs "
            "as it has slots)"},
        Example{"NoWorkers",
                "!a:0",
                {"x 1", "p 0"},
                "1?p NO_WORKERS(no worker is up and open for new ranks); 2?x NO_WORKERS(no worker is up and open for "
                "new ranks)"},
        Example{"DrainingAndDownAreNamed",
                "a:0,1,2/4 -gpu-7:0 !c:0,1",
                {"x 4"},
                "1?x GANG_DOES_NOT_FIT(needs 4 slots, 3 free, 1 on draining worker gpu-7, 2 on unreachable worker c)"}),
    [](const auto& info) { return info.param.name; });

TEST(ScheduleAvoidTest, GoesElsewhereIfItCan) {
  Snapshot snapshot{Workers("a:0 b:0,1"), {Job("x 1")}};
  snapshot.jobs[0].avoid = {WorkerId("a")};
  EXPECT_EQ(Text(Schedule(snapshot, kNow)), "x=b0");
  snapshot.jobs[0].slots = 3;
  EXPECT_EQ(Text(Schedule(snapshot, kNow)), "x=b0+b1+a0");
}

TEST(ScheduleDelayTest, AJobThatBacksOffKeepsItsPlace) {
  Snapshot snapshot{Workers("a:0"), {Job("first 1 50 1"), Job("second 1 50 2")}};
  snapshot.jobs[0].not_before = kNow + absl::Seconds(1);
  EXPECT_EQ(
      Text(Schedule(snapshot, kNow)),
      "1?first BACKING_OFF(waits a moment before the next attempt); 2?second GANG_DOES_NOT_FIT(needs 1 slot, 0 free)");
  EXPECT_EQ(Schedule(snapshot, kNow + absl::Seconds(1)).starts.at(0).job_id, JobId("first"));
}

TEST(ScheduleDelayTest, OldRanksMustBeGone) {
  Snapshot snapshot{Workers("a:0,1"), {Job("first 1 50 1"), Job("second 1 50 2")}};
  snapshot.jobs[0].old_ranks_remain = true;
  EXPECT_EQ(Text(Schedule(snapshot, kNow)),
            "second=a1; 1?first RANKS_STOPPING(waits until every rank of the earlier attempt is surely gone)");
}

TEST(ScheduleRestartTest, AWorkerThatMayComeBackCountsForWhatIsPossible) {
  Snapshot snapshot{Workers("a:0 !b:0"), {Job("gang 2 50 1"), Job("small 1 50 2")}};
  snapshot.workers[1].expected = true;
  EXPECT_EQ(Text(Schedule(snapshot, kNow)),
            "1?gang GANG_DOES_NOT_FIT(needs 2 slots, 1 free, 1 on unreachable worker b); 2?small BEHIND_IN_QUEUE(needs "
            "1 slot, "
            "waits behind gang, which needs 2)");
}

}  // namespace
}  // namespace longspan::scheduler
