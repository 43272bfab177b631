#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "server/simulator/cluster.h"
#include "server/simulator/trace.h"

namespace longspan::simulator {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<std::vector<TraceJob>> Read(const std::string& text) {
  std::istringstream in(text);
  return ReadTrace(in, "t.jsonl");
}

std::string Message(const std::string& text) { return std::string(Read(text).status().message()); }

TEST(TraceTest, ReadsEveryField) {
  const auto jobs =
      Read(R"({"id": "b", "submit": 7.5, "sizes": [2, 4], "run_time": 60, "planned_run_time": 90, "limit": 120,)"
           R"( "queue": "q", "priority": 80, "user": "u", "labels": {"gpu": "H200"}, "memory_gib": 1.5})"
           "\n\n# a comment\n"
           R"({"id": "a", "submit": 1, "slots": 1, "run_time": 5})"
           "\n");
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  ASSERT_EQ(jobs->size(), 2u);
  EXPECT_EQ((*jobs)[0].id.value(), "a") << "by submit time";
  EXPECT_EQ((*jobs)[0].limit, absl::InfiniteDuration());
  EXPECT_EQ((*jobs)[0].planned_run_time, absl::Seconds(5));
  const TraceJob& job = (*jobs)[1];
  EXPECT_EQ(job.submit, absl::Seconds(7.5));
  EXPECT_EQ(job.sizes, (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(job.planned_run_time, absl::Seconds(90));
  EXPECT_EQ(job.limit, absl::Seconds(120));
  EXPECT_EQ(job.queue, "q");
  EXPECT_EQ(job.priority, 80);
  EXPECT_EQ(job.requirements.labels.at("gpu"), "H200");
  EXPECT_EQ(job.requirements.memory_bytes_min, int64_t{3} << 29);
  const auto again = Read(TraceLine(job));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(TraceLine((*again)[0]), TraceLine(job));
}

TEST(TraceTest, EveryBadLineIsToldWithItsNumberAndWhatWouldBeRight) {
  const std::string message = Message(
      "{\"id\": \"a\", \"submit\": 0, \"slots\": 1, \"run_time\": 5}\n"
      "{\"id\": \"b\", \"submit\": -1, \"slots\": 1, \"run_time\": 5}\n"
      "{\"id\": \"a\", \"submit\": 0, \"slots\": 1, \"run_time\": 5}\n"
      "{oops\n"
      "{\"id\": \"c\", \"submit\": 0, \"slots\": 1, \"run_time\": 5, \"prio\": 3}\n"
      "{\"id\": \"d\", \"submit\": 0, \"run_time\": 5}\n"
      "{\"id\": \"e\", \"submit\": 0, \"sizes\": [4, 2], \"run_time\": 5}\n"
      "{\"id\": \"f\", \"submit\": 0, \"slots\": 1}\n"
      "[1]\n");
  EXPECT_THAT(message, HasSubstr("8 of 9 lines are wrong"));
  EXPECT_THAT(message, HasSubstr("t.jsonl line 2: \"submit\" is -1; seconds from 0"));
  EXPECT_THAT(message, HasSubstr("t.jsonl line 3: \"id\" a was there before"));
  EXPECT_THAT(message, HasSubstr("t.jsonl line 4: no JSON at byte 2"));
  EXPECT_THAT(message, HasSubstr("t.jsonl line 5: \"prio\" is no field; the fields are id, submit"));
  EXPECT_THAT(message, HasSubstr("t.jsonl line 6: one of \"slots\""));
  EXPECT_THAT(message, HasSubstr("t.jsonl line 7: \"sizes\" is [4,2]; each must be larger"));
  EXPECT_THAT(message, HasSubstr("t.jsonl line 8: \"run_time\" is missing"));
  EXPECT_THAT(message, HasSubstr("t.jsonl line 9: a JSON object is right"));
}

TEST(TraceTest, AnEmptyTraceIsAnError) { EXPECT_THAT(Message("# nothing\n"), HasSubstr("has no job")); }

TEST(ClusterTest, ReadsWhatItWritesAndNamesWhatIsWrong) {
  const auto cluster =
      ParseCluster(R"({"workers": [{"count": 3, "slots": 4, "device": "NVIDIA H200", "racks": 2}],)"
                   R"( "queues": [{"name": "q", "weight": 2, "slots_max": 5, "run_time_default": 60}]})",
                   "c.json");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  EXPECT_EQ(cluster->SlotCount(), 12);
  EXPECT_EQ(cluster->queues.at("q").run_time_default, absl::Minutes(1));
  EXPECT_EQ(ClusterText(*ParseCluster(ClusterText(*cluster), "again")), ClusterText(*cluster));
  std::vector<scheduler::SlotKind> kinds;
  const auto workers = cluster->Workers(kinds);
  ASSERT_EQ(workers.size(), 3u);
  EXPECT_EQ(workers[0].labels.at("rack"), workers[2].labels.at("rack"));
  EXPECT_NE(workers[0].labels.at("rack"), workers[1].labels.at("rack"));

  const auto wrong = [](const std::string& text) {
    return std::string(ParseCluster(text, "c.json").status().message());
  };
  EXPECT_THAT(wrong(R"({"workers": []})"), HasSubstr("\"workers\" is empty"));
  EXPECT_THAT(wrong(R"({"workers": [{"slots": 0}]})"), HasSubstr("c.json: workers[0].slots is 0"));
  EXPECT_THAT(wrong(R"({"workers": [{"slot": 8}]})"), HasSubstr("workers[0] has \"slot\"; known are count, slots"));
  EXPECT_THAT(wrong(R"({"workers": [{}], "queues": [{"name": "q", "weight": 0}]})"),
              HasSubstr("queues[0].weight is 0"));
  EXPECT_THAT(wrong("{"), HasSubstr("no JSON"));
}

}  // namespace
}  // namespace longspan::simulator
