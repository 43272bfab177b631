// watch, logs and submit --wait: they follow a job to its end.
#include "client/exit_codes.h"
#include "tests/client/commands_fixture.h"

namespace longspan::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

using WatchTest = CommandsTest;

TEST_F(WatchTest, SubmitAndWaitEndsWithTheTableThePathsAndTheCurve) {
  const auto running = JobIn(v1::JOB_STATE_RUNNING);
  server_.service.watch_scripts = {Script(
      running,
      {Event(1, v1::JOB_STATE_RUNNING, "attempt 1 runs"), Sample(1, 1, 4.0), Sample(2, 5, 2.0), Sample(3, 10, 1.5)},
      Succeeded())};
  const Result result = client_.Run({"submit", "--wait", JobFile()});
  EXPECT_EQ(result.exit_code, kExitSucceeded) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("job-1 submitted"), HasSubstr("attempt 1 runs"),
                    HasSubstr("train    10/10  100%  loss 1.5000"), HasSubstr("tokens      base  rescaled  extended"),
                    HasSubstr("256      5.25         -         -"), HasSubstr("1,024  1.23e+05     34.50      8.50"),
                    HasSubstr("Adapter       /s/jobs/job-1/adapter"), HasSubstr("Merged model  /s/jobs/job-1/merged"),
                    HasSubstr("Loss (nats per token)"), Not(HasSubstr("\x1b"))));
}

TEST_F(WatchTest, OnATerminalTheBarMovesInPlaceAndFitsTheWidth) {
  client_.terminal = true;
  client_.width = 60;
  server_.service.watch_scripts = {
      Script(JobIn(v1::JOB_STATE_RUNNING),
             {Sample(1, 1, 4.0), Event(1, v1::JOB_STATE_RUNNING, "saved"), Sample(2, 5, 2.0)}, Succeeded())};
  const Result result = client_.Run({"watch", "job-1"});
  EXPECT_THAT(result.out, AllOf(HasSubstr("\r\x1b[K"), HasSubstr("█"), HasSubstr("loss 2.0000"),
                                HasSubstr("12.3k tok/s"), HasSubstr("10s left")));
  EXPECT_THAT(result.out, HasSubstr("saved\ntrain")) << "the bar is drawn anew below an event";
}

TEST_F(WatchTest, AWatchGoesOnAfterTheServerCameBack) {
  const auto running = JobIn(v1::JOB_STATE_RUNNING);
  server_.service.watch_scripts = {Script(running, {Event(4, v1::JOB_STATE_RUNNING, "x"), Sample(7, 1, 4.0)},
                                          std::nullopt, grpc::Status(grpc::StatusCode::UNAVAILABLE, "restart")),
                                   Script(running, {Sample(8, 2, 3.0)}, JobIn(v1::JOB_STATE_FAILED))};
  EXPECT_EQ(client_.Run({"watch", "job-1"}).exit_code, kExitFailed);
  ASSERT_EQ(server_.service.watched.size(), 2u);
  EXPECT_EQ(server_.service.watched[1].after_event(), 4);
  EXPECT_EQ(server_.service.watched[1].after_progress(), 7);
}

TEST_F(WatchTest, ExitCodesOfTheEnds) {
  for (const auto& [state, code] : std::map<v1::JobState, int>{{v1::JOB_STATE_SUCCEEDED, kExitSucceeded},
                                                               {v1::JOB_STATE_FAILED, kExitFailed},
                                                               {v1::JOB_STATE_CANCELLED, kExitCancelled}}) {
    server_.service.watch_scripts = {Script(JobIn(v1::JOB_STATE_PAUSED), {}, JobIn(state))};
    const Result result = client_.Run({"watch", "job-1"});
    EXPECT_EQ(result.exit_code, code);
    EXPECT_THAT(result.out, HasSubstr("job-1 is paused; still waiting"));
  }
}

TEST_F(WatchTest, AWatchThatRunsOutOfTimeSaysThatTheJobGoesOn) {
  server_.service.watch_scripts = {
      [this](const v1::WatchJobRequest&, grpc::ServerWriter<v1::WatchJobResponse>* writer) {
        v1::WatchJobResponse response;
        *response.mutable_job() = JobIn(v1::JOB_STATE_RUNNING);
        writer->Write(response);
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "again");
      }};
  const Result result = client_.Run({"watch", "job-1", "--timeout", "1s"});
  EXPECT_EQ(result.exit_code, kExitTimeout);
  EXPECT_THAT(result.err, HasSubstr("job-1 is still RUNNING after 1s"));
}

TEST_F(WatchTest, LogsFollowThroughABrokenConnection) {
  server_.service.log = "line one\nline two\n";
  EXPECT_EQ(client_.Run({"logs", "job-1", "--follow"}).out, "line one\nline two\n");
  EXPECT_EQ(client_.Run({"logs", "job-1"}).exit_code, kExitConnection) << "without --follow a broken stream is told";
}

}  // namespace
}  // namespace longspan::client
