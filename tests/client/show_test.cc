// list, describe, workers and checkpoints: what is shown of what there is.
#include "client/exit_codes.h"
#include "tests/client/commands_fixture.h"

namespace longspan::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

using ShowTest = CommandsTest;

TEST_F(ShowTest, ListGoesThroughThePages) {
  v1::Job& job = *server_.service.pages[0].add_jobs();
  job = JobIn(v1::JOB_STATE_QUEUED);
  job.mutable_spec()->set_name("first");
  job.set_status_message("needs 4 slots, 3 free");
  server_.service.pages[0].set_next_page_token("more");
  server_.service.pages.emplace_back().add_jobs()->set_job_id("job-2");
  const Result result = client_.Run({"list", "--state", "queued", "--label", "team=x"});
  EXPECT_EQ(result.exit_code, kExitSucceeded) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("JOB"), HasSubstr("first"), HasSubstr("16m40s ago"),
                                HasSubstr("needs 4 slots, 3 free"), HasSubstr("job-2")));
  EXPECT_EQ(server_.service.listed[1].page_token(), "more");
  EXPECT_EQ(server_.service.listed[0].labels().at("team"), "x");
  EXPECT_EQ(client_.Run({"list", "--state", "asleep"}).exit_code, kExitUsage);
}

TEST_F(ShowTest, ListShowsHowJobsWaitWhereOneDoes) {
  v1::Job& running = *server_.service.pages[0].add_jobs();
  running = JobIn(v1::JOB_STATE_RUNNING);
  running.mutable_spec()->mutable_resources()->set_slots(8);
  running.mutable_spec()->mutable_resources()->set_slots_min(2);
  EXPECT_THAT(client_.Run({"list"}).out, AllOf(HasSubstr(" 2-8 "), Not(HasSubstr("STARTS"))));
  const auto add = [&](int64_t position, int64_t start_seconds) {
    v1::Job& job = *server_.service.pages[0].add_jobs();
    job = JobIn(v1::JOB_STATE_QUEUED);
    job.set_queue_position(position);
    job.set_status_message("waits");
    if (start_seconds > 0) job.mutable_expected_start_time()->set_seconds(start_seconds);
  };
  add(1, 1'000'000 + 25 * 60 + 10);
  add(2, 1'000'000 + 3 * 3600 + 300);
  add(3, 0);
  add(4, 999'000);
  const std::string out = client_.Run({"list"}).out;
  EXPECT_THAT(out, ::testing::ContainsRegex("POSITION +STARTS +WHY"));
  EXPECT_THAT(out, ::testing::ContainsRegex(" 1 +in 25m +waits"));
  EXPECT_THAT(out, ::testing::ContainsRegex(" 2 +in 3h05m +waits"));
  EXPECT_THAT(out, ::testing::ContainsRegex(" 3 +\\? +waits"));
  EXPECT_THAT(out, ::testing::ContainsRegex(" 4 +soon +waits"));
}

TEST_F(ShowTest, DescribeShowsWhatAJobWaitsForAndWhatIsKeptForIt) {
  v1::Job& job = server_.service.job;
  job.set_queue_position(3);
  EXPECT_THAT(client_.Run({"describe", "job-1"}).out, ::testing::ContainsRegex("Starts +not known"));
  job.mutable_expected_start_time()->set_seconds(1'000'000 + 25 * 60);
  job.mutable_spec()->mutable_resources()->set_slots(8);
  job.mutable_spec()->mutable_resources()->set_slots_min(2);
  (*job.mutable_spec()->mutable_resources()->mutable_require())["gpu"] = "H200";
  job.mutable_spec()->mutable_resources()->set_memory_bytes_min(int64_t{40} << 30);
  job.set_preemptions(2);
  v1::ReservedSlot& slot = *job.add_reserved_slots();
  slot.set_worker_id("gpu-7");
  slot.set_slot(3);
  job.mutable_reserved_until_time()->set_seconds(1'000'000 + 240);
  const std::string out = client_.Run({"describe", "job-1"}).out;
  EXPECT_THAT(out, ::testing::ContainsRegex("Starts +in 25m, by estimates \\(1970-01-12T14:11:40.000Z\\)"));
  EXPECT_THAT(out, ::testing::ContainsRegex("Slots +2-8\n"));
  EXPECT_THAT(out, ::testing::ContainsRegex("Requires +gpu: H200, 40.0 GiB a slot"));
  EXPECT_THAT(out, ::testing::ContainsRegex("Reserved +gpu-7:3; lapses in 4m"));
  EXPECT_THAT(out, ::testing::ContainsRegex("Preempted +2 times"));

  job = JobIn(v1::JOB_STATE_RUNNING);
  job.set_queue_position(0);
  v1::Attempt& attempt = *job.add_attempts();
  attempt.set_phase(v1::PHASE_TRAIN);
  for (int rank = 0; rank < 5; ++rank) attempt.add_ranks()->set_rank(rank);
  EXPECT_THAT(client_.Run({"describe", "job-1"}).out,
              AllOf(::testing::ContainsRegex("Slots +2-8, now 5\n"), Not(HasSubstr("Starts "))));
}

TEST_F(ShowTest, DescribeShowsOneRecordAsItIsTrained) {
  v1::Job job = JobIn(v1::JOB_STATE_RUNNING);
  v1::Artifact& dataset = *job.add_artifacts();
  dataset.set_kind("dataset");
  dataset.set_path("/s/d");
  EXPECT_EQ(client_.Run({"describe", "job-1"}).out.find("as it is trained"), std::string::npos);
  dataset.set_excerpt("prompt | [INST]Why?\nprompt | \x1b[31m[/INST]\nanswer | So.</s>\n");
  server_.service.job = job;
  EXPECT_THAT(client_.Run({"describe", "job-1"}).out,
              HasSubstr("  prompt | [INST]Why?\n  prompt | ?[31m[/INST]\n  answer | So.</s>\n"));
  EXPECT_EQ(ItemsOf(client_.Run({"describe", "job-1", "-o", "json"}))[0]["artifacts"][0]["excerpt"], dataset.excerpt());

  std::string many;
  for (int line = 0; line < 110; ++line) many += "prompt | x\n";
  server_.service.job.mutable_artifacts(0)->set_excerpt(many);
  EXPECT_THAT(client_.Run({"describe", "job-1"}).out, HasSubstr("  prompt | x\n  [... 10 further lines ...]\n"));
}

TEST_F(ShowTest, DescribeSaysWhyAJobDoesNotRun) {
  server_.service.job.set_reason("GANG_DOES_NOT_FIT");
  server_.service.job.set_status_message("needs 4 slots, 3 free\x1b[31m");
  server_.service.job.set_queue_position(2);
  const Result result = client_.Run({"describe", "job-1"});
  EXPECT_THAT(result.out, AllOf(HasSubstr("QUEUED: GANG_DOES_NOT_FIT: needs 4 slots, 3 free"),
                                HasSubstr("position 2 of all that wait"), Not(HasSubstr("\x1b"))));
  const json job = ItemsOf(client_.Run({"describe", "job-1", "-o", "json"}))[0];
  EXPECT_EQ(job["reason"], "GANG_DOES_NOT_FIT");
  EXPECT_EQ(job["progress"], nullptr);
  EXPECT_EQ(job["submit_time"], "1970-01-12T13:30:00.000Z");
  EXPECT_THAT(client_.Run({"describe", "job-1", "-o", "yaml"}).out,
              AllOf(HasSubstr("kind: \"Job\""), HasSubstr("queue_position: 2")));
}

TEST_F(ShowTest, NoOutputLetsARecordActOnTheTerminal) {
  v1::Job job = JobIn(v1::JOB_STATE_RUNNING);
  v1::Artifact& dataset = *job.add_artifacts();
  dataset.set_kind("dataset");
  dataset.set_excerpt(
      "prompt | \x1b]0;owned\x07\r\x7f\xc2\x9b"
      "2J\xe2\x80\xae gro\xc3\x9f \xe2\x81\xa6\n");
  server_.service.job = job;
  for (const char* format : {"table", "json", "yaml"}) {
    const std::string out = client_.Run({"describe", "job-1", "-o", format}).out;
    for (const char* raw : {"\x1b", "\x07", "\r", "\x7f", "\xc2\x9b", "\xe2\x80\xae", "\xe2\x81\xa6"}) {
      EXPECT_THAT(out, Not(HasSubstr(raw))) << format;
    }
    EXPECT_THAT(out, HasSubstr("gro\xc3\x9f")) << format;
  }
  const json shown = ItemsOf(client_.Run({"describe", "job-1", "-o", "json"}))[0];
  EXPECT_EQ(shown["artifacts"][0]["excerpt"], dataset.excerpt()) << "for programs nothing is lost";
}

TEST_F(ShowTest, NonFiniteNumbersAreTextsInJson) {
  (*server_.service.job.mutable_progress()->mutable_values())["loss"] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(ItemsOf(client_.Run({"describe", "job-1", "-o", "json"}))[0]["progress"]["values"]["loss"], "nan");
}

TEST_F(ShowTest, WorkersAndCheckpointsAreTables) {
  v1::Worker& worker = *server_.service.workers.add_workers();
  worker.set_worker_id("gpu-7");
  worker.set_up(true);
  worker.set_draining(true);
  worker.add_slots()->set_device("cpu");
  worker.add_slots()->set_job_id("job-1");
  EXPECT_THAT(client_.Run({"workers"}).out, ::testing::ContainsRegex("gpu-7 +draining +2 +1 +cpu"));
  v1::CheckpointRecord& checkpoint = *server_.service.checkpoints.add_checkpoints();
  checkpoint.set_name("step-00000200.attempt-3");
  checkpoint.set_step(200);
  checkpoint.set_size_bytes(3 << 20);
  EXPECT_THAT(client_.Run({"checkpoints", "job-1"}).out,
              ::testing::ContainsRegex("step-00000200.attempt-3 +200 +0 +3.0 MiB"));
  EXPECT_EQ(client_.Run({"cancel", "job-1"}).out, "job-1 is CANCELLING\n");
  EXPECT_EQ(client_.Run({"delete", "job-1"}).out, "job-1 is deleted; its files stay\n");
  EXPECT_EQ(server_.service.deleted, std::vector<std::string>{"job-1"});
}

}  // namespace
}  // namespace longspan::client
