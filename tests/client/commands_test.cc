// The commands against a server inside the test: what they send, what they print, how they exit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "client/exit_codes.h"
#include "proto/support/status.h"
#include "tests/client/fake_server.h"
#include "worker/storage/storage.h"

namespace longspan::client {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kJobFile[] = R"(name: extend
model: {path: model}
data:
  sources: [corpus.txt]
context_length: 1024
)";

class CommandsTest : public ::testing::Test {
 protected:
  CommandsTest() {
    std::string name = fs::temp_directory_path() / "longspan-client-XXXXXX";
    folder_ = ::mkdtemp(name.data());
    client_.variables["LONGSPAN_ADDRESS"] = server_.address;
    server_.service.job.set_job_id("job-1");
    server_.service.job.set_state(v1::JOB_STATE_QUEUED);
    server_.service.job.mutable_submit_time()->set_seconds(999'000);
    std::ofstream(JobFile()) << kJobFile;
  }
  ~CommandsTest() override { fs::remove_all(folder_); }

  std::string JobFile() const { return folder_ / "job.yaml"; }
  static json ItemsOf(const Result& result) { return json::parse(result.out).at("items"); }

  // A script of a watch: the job, some samples, the job at its end.
  static FakeService::WatchScript Script(v1::Job first, std::vector<v1::WatchJobResponse> between,
                                         std::optional<v1::Job> last, grpc::Status status = grpc::Status::OK) {
    return [=](const v1::WatchJobRequest&, grpc::ServerWriter<v1::WatchJobResponse>* writer) {
      v1::WatchJobResponse response;
      *response.mutable_job() = first;
      writer->Write(response);
      for (const auto& update : between) writer->Write(update);
      if (last) {
        *response.mutable_job() = *last;
        writer->Write(response);
      }
      return status;
    };
  }
  v1::WatchJobResponse Sample(int64_t sequence, int64_t step, double loss) const {
    v1::WatchJobResponse response;
    v1::ProgressSample& sample = *response.mutable_progress();
    sample.set_sequence(sequence);
    sample.set_attempt(1);
    sample.set_phase(v1::PHASE_TRAIN);
    sample.set_step(step);
    sample.set_steps(10);
    (*sample.mutable_values())["loss"] = loss;
    (*sample.mutable_values())["tokens_per_second"] = 12345;
    sample.mutable_time()->set_seconds(1000 + 2 * step);
    return response;
  }
  v1::WatchJobResponse Event(int64_t sequence, v1::JobState state, const std::string& message) const {
    v1::WatchJobResponse response;
    response.mutable_event()->set_sequence(sequence);
    response.mutable_event()->set_state(state);
    response.mutable_event()->set_message(message);
    return response;
  }
  v1::Job JobIn(v1::JobState state) const {
    v1::Job job = server_.service.job;
    job.set_state(state);
    return job;
  }
  v1::Job Succeeded() const {
    v1::Job job = JobIn(v1::JOB_STATE_SUCCEEDED);
    const auto add = [&job](const char* model, int64_t length, double perplexity, int64_t step) {
      v1::EvaluationRow& row = *job.add_evaluations();
      row.set_model(model);
      row.set_length(length);
      row.set_protocol("windows");
      row.set_perplexity(perplexity);
      row.set_step(step);
    };
    add("base", 256, 5.25, 0);
    add("base", 1024, 123456.0, 0);
    add("rescaled", 1024, 34.5, 0);
    add("extended", 1024, 9.75, 5);
    add("extended", 1024, 8.5, 10);
    for (const auto& [kind, path] : std::map<std::string, std::string>{
             {"adapter", "/s/jobs/job-1/adapter"}, {"merged", "/s/jobs/job-1/merged"}, {"dataset", "/s/d"}}) {
      v1::Artifact& artifact = *job.add_artifacts();
      artifact.set_kind(kind);
      artifact.set_path(path);
    }
    return job;
  }

  fs::path folder_;
  FakeServer server_;
  TestClient client_;
};

TEST_F(CommandsTest, EvaluateSendsAJobOfItsKindAndShowsItsScores) {
  v1::Job job = Succeeded();
  v1::EvaluationRow& row = *job.add_evaluations();
  row.set_model("extended");
  row.set_length(4096);
  row.set_protocol("passkey");
  row.set_score(97.5);
  row.set_examples(100);
  server_.service.watch_scripts = {Script(JobIn(v1::JOB_STATE_QUEUED), {}, job)};
  const Result result =
      client_.Run({"evaluate", "/models/Tiny Base/", "--data", "/text", "--passkey", "4096,8192", "--lengths", "512",
                   "--longbench", "/longbench", "--template", "llama2", "--set", "evaluation.passkey.trials=5"});
  ASSERT_EQ(result.exit_code, kExitSucceeded) << result.err;
  const v1::JobSpec& sent = server_.service.submitted.at(0).spec();
  EXPECT_EQ(sent.kind(), v1::JobSpec::KIND_EVALUATE);
  EXPECT_EQ(sent.name(), "evaluate-tiny-base");
  EXPECT_EQ(sent.evaluation().passkey().lengths(1), 8192);
  EXPECT_EQ(sent.evaluation().passkey().trials(), 5);
  EXPECT_EQ(sent.evaluation().longbench().path(), "/longbench");
  EXPECT_EQ(sent.evaluation().template_(), v1::EvaluationSpec::TEMPLATE_LLAMA2);
  EXPECT_EQ(sent.data().sources(0), "/text");
  EXPECT_THAT(result.out, HasSubstr("Perplexity by length"));
  EXPECT_THAT(result.out, HasSubstr("Scores (0 to 100; higher is better)"));
  EXPECT_THAT(result.out, HasSubstr("97.50"));
  // A model that no task measured has no column among the scores.
  EXPECT_THAT(result.out, HasSubstr("task     tokens  extended\n"));

  const Result nothing = client_.Run({"evaluate", "/models/tiny"});
  EXPECT_EQ(nothing.exit_code, kExitUsage);
  EXPECT_THAT(nothing.err, HasSubstr("has nothing to measure"));
}

TEST_F(CommandsTest, SubmitSendsTheJobFileWithAbsolutePathsAndARequestId) {
  const Result result =
      client_.Run({"submit", JobFile(), "--set", "training.steps=7", "--set", "labels.fake.steps=5", "-o", "json"});
  ASSERT_EQ(result.exit_code, kExitSucceeded) << result.err;
  EXPECT_EQ(ItemsOf(result)[0]["job_id"], "job-1");
  EXPECT_EQ(ItemsOf(result)[0]["state"], "QUEUED");
  EXPECT_EQ(ItemsOf(result)[0]["spec"]["training"]["steps"], 7);
  EXPECT_EQ(json::parse(result.out)["kind"], "Job");
  const v1::SubmitJobRequest& sent = server_.service.submitted.at(0);
  EXPECT_FALSE(sent.request_id().empty());
  EXPECT_EQ(sent.spec().model().path(), folder_ / "model");
  EXPECT_EQ(sent.spec().data().sources(0), folder_ / "corpus.txt");
  EXPECT_EQ(sent.spec().labels().at("fake.steps"), "5");
}

v1::PlanJobResponse SomePlan() {
  v1::PlanJobResponse plan;
  (*plan.mutable_memory_bytes())["weights"] = int64_t{13} << 30;
  (*plan.mutable_memory_bytes())["activations"] = int64_t{50} << 30;
  (*plan.mutable_memory_bytes())["newer"] = 1024;
  (*plan.mutable_host_memory_bytes())["activations"] = int64_t{8} << 30;
  (*plan.mutable_host_memory_bytes())["tokens"] = 0;
  (*plan.mutable_kept_bytes())["input"] = int64_t{58} << 30;
  (*plan.mutable_kept_bytes())["gate_up"] = 0;
  plan.set_device_bytes((int64_t{63} << 30) + 1024);
  plan.set_device_bytes_limit(int64_t{70} << 30);
  plan.mutable_policy()->set_keep(v1::MemorySpec::KEEP_ATTENTION_OUTPUT);
  plan.mutable_policy()->set_checkpoint_every(4);
  plan.set_policy_summary(
      "of every 4 layers the first one's input is kept; while they run again, each layer keeps its "
      "input and the attention output; tiles of 2048 tokens, logits of 256");
  plan.set_token_flops(40.5e9);
  plan.set_step_flops(2.7e15);
  plan.set_executed_step_flops(3.5e15);
  plan.set_tokens_per_second(10455.7);
  plan.set_step_seconds(627);
  plan.set_device_profile("NVIDIA H200");
  plan.set_longest_context(711'744);
  plan.set_trained_parameters(140'000'000);
  plan.set_verdict(v1::PlanJobResponse::VERDICT_FITS);
  plan.set_summary("fits: 63.0 GiB of 70.0 GiB");
  return plan;
}

TEST_F(CommandsTest, PlanShowsMemoryPolicyWorkAndVerdict) {
  server_.service.plan = SomePlan();
  const Result result = client_.Run({"plan", JobFile()});
  EXPECT_EQ(result.exit_code, kExitSucceeded);
  EXPECT_EQ(result.out, R"(MEMORY OF A RANK    DEVICE     HOST
weights           13.0 GiB
activations       50.0 GiB  8.0 GiB
newer              1.0 KiB
together          63.0 GiB  8.0 GiB
there is          70.0 GiB

activations       input 58.0 GiB
policy            of every 4 layers the first one's input is kept; while they run again, each layer
                  keeps its input and the attention output; tiles of 2048 tokens, logits of 256
  as `memory`     keep: attention_output, checkpoint_every: 4, host_layers: 0, tile_tokens: 0,
                  loss_tile_tokens: 0, tile_heads: 0
trains            140,000,000 values
work              40.5 GFLOP per token, 2.7 PFLOP per step; 3.5 PFLOP with what is computed again
speed             about 10,455 tokens/s, 10m27s per step (NVIDIA H200)
longest context   711,744 tokens
verdict           fits: 63.0 GiB of 70.0 GiB
)");
  EXPECT_EQ(server_.service.planned.at(0).spec().model().path(), folder_ / "model");
  EXPECT_FALSE(server_.service.planned.at(0).has_device_bytes());
  EXPECT_FALSE(server_.service.planned.at(0).has_device_profile());
}

TEST_F(CommandsTest, PlanEndsWithTheCodeOfARefusalWhereTheJobDoesNotFit) {
  server_.service.plan = SomePlan();
  server_.service.plan.set_verdict(v1::PlanJobResponse::VERDICT_DOES_NOT_FIT);
  EXPECT_EQ(client_.Run({"plan", JobFile()}).exit_code, kExitRefused);
  const Result as_json = client_.Run({"plan", JobFile(), "--output", "json"});
  EXPECT_EQ(as_json.exit_code, kExitRefused);
  EXPECT_EQ(json::parse(as_json.out).at("kind"), "Plan");
  EXPECT_EQ(ItemsOf(as_json).at(0).at("verdict"), "DOES_NOT_FIT");
  EXPECT_EQ(ItemsOf(as_json).at(0).at("policy").at("keep"), "ATTENTION_OUTPUT");
  server_.service.plan.Clear();
  server_.service.plan.set_summary("jobs of kind evaluate are not planned");
  const Result evaluation = client_.Run({"plan", JobFile()});
  EXPECT_EQ(evaluation.exit_code, kExitSucceeded);
  EXPECT_EQ(evaluation.out, "verdict           jobs of kind evaluate are not planned\n");
  server_.service.plan_status = {grpc::StatusCode::FAILED_PRECONDITION, "planning needs /m/config.json"};
  EXPECT_EQ(client_.Run({"plan", JobFile()}).exit_code, kExitRefused);
}

TEST_F(CommandsTest, PlanSendsLimitsAndAProfile) {
  const std::string profile = folder_ / "profile.json";
  std::ofstream(profile) << R"({"name": "bench", "dtype": "bf16", "gemm_flops_per_second": 7.2e14})";
  EXPECT_EQ(
      client_.Run({"plan", JobFile(), "--device-memory", "80GiB", "--host-memory", "4096", "--device-profile", profile})
          .exit_code,
      kExitSucceeded);
  const v1::PlanJobRequest& sent = server_.service.planned.at(0);
  EXPECT_EQ(sent.device_bytes(), int64_t{80} << 30);
  EXPECT_EQ(sent.host_bytes(), 4096);
  EXPECT_EQ(sent.device_profile().name(), "bench");
  EXPECT_EQ(sent.device_profile().dtype(), v1::TrainingSpec::DTYPE_BF16);
  EXPECT_EQ(sent.device_profile().gemm_flops_per_second(), 7.2e14);
  std::ofstream(profile) << R"({"gemm_flops": 1})";
  const Result wrong = client_.Run({"plan", JobFile(), "--device-profile", profile});
  EXPECT_EQ(wrong.exit_code, kExitUsage);
  EXPECT_THAT(wrong.err, AllOf(HasSubstr("profile.json"), HasSubstr("gemm_flops")));
  EXPECT_EQ(client_.Run({"plan", JobFile(), "--device-profile", folder_ / "none"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"plan", JobFile(), "--device-memory", "80GB"}).exit_code, kExitUsage);
}

TEST_F(CommandsTest, SubmitIsRetriedUnderTheSameRequestId) {
  server_.service.unavailable_submits = 2;
  EXPECT_EQ(client_.Run({"submit", JobFile()}).exit_code, kExitSucceeded);
  ASSERT_EQ(server_.service.submitted.size(), 3u);
  EXPECT_EQ(server_.service.submitted[0].request_id(), server_.service.submitted[2].request_id());
}

TEST_F(CommandsTest, AWrongJobFileIsToldBeforeAnythingIsSent) {
  std::ofstream(JobFile())
      << "name: extend\nmodel: {path: m}\ndata: {sources: [x]}\ncontext_length: 1024\ntrainin:\n  steps: 5\n";
  const Result result = client_.Run({"submit", JobFile()});
  EXPECT_EQ(result.exit_code, kExitUsage);
  EXPECT_THAT(result.err, HasSubstr("line 5: trainin: unknown key; did you mean training?"));
  EXPECT_TRUE(server_.service.submitted.empty());
}

TEST_F(CommandsTest, TheServersRefusalIsShownWithEveryField) {
  server_.service.submit_status =
      ToGrpcStatus(WithDetails(absl::InvalidArgumentError("the job cannot be accepted"),
                               {"", {}, {{"spec.model.path", "lies outside of the roots"}}}));
  const Result result = client_.Run({"submit", JobFile()});
  EXPECT_EQ(result.exit_code, kExitRefused);
  EXPECT_THAT(result.err,
              AllOf(HasSubstr("the job cannot be accepted"), HasSubstr("spec.model.path: lies outside of the roots")));
}

TEST_F(CommandsTest, SubmitAndWaitEndsWithTheTableThePathsAndTheCurve) {
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

TEST_F(CommandsTest, OnATerminalTheBarMovesInPlaceAndFitsTheWidth) {
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

TEST_F(CommandsTest, AWatchGoesOnAfterTheServerCameBack) {
  const auto running = JobIn(v1::JOB_STATE_RUNNING);
  server_.service.watch_scripts = {Script(running, {Event(4, v1::JOB_STATE_RUNNING, "x"), Sample(7, 1, 4.0)},
                                          std::nullopt, grpc::Status(grpc::StatusCode::UNAVAILABLE, "restart")),
                                   Script(running, {Sample(8, 2, 3.0)}, JobIn(v1::JOB_STATE_FAILED))};
  EXPECT_EQ(client_.Run({"watch", "job-1"}).exit_code, kExitFailed);
  ASSERT_EQ(server_.service.watched.size(), 2u);
  EXPECT_EQ(server_.service.watched[1].after_event(), 4);
  EXPECT_EQ(server_.service.watched[1].after_progress(), 7);
}

TEST_F(CommandsTest, ExitCodesOfTheEnds) {
  for (const auto& [state, code] : std::map<v1::JobState, int>{{v1::JOB_STATE_SUCCEEDED, kExitSucceeded},
                                                               {v1::JOB_STATE_FAILED, kExitFailed},
                                                               {v1::JOB_STATE_CANCELLED, kExitCancelled}}) {
    server_.service.watch_scripts = {Script(JobIn(v1::JOB_STATE_PAUSED), {}, JobIn(state))};
    const Result result = client_.Run({"watch", "job-1"});
    EXPECT_EQ(result.exit_code, code);
    EXPECT_THAT(result.out, HasSubstr("job-1 is paused; still waiting"));
  }
}

TEST_F(CommandsTest, AWatchThatRunsOutOfTimeSaysThatTheJobGoesOn) {
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

TEST_F(CommandsTest, ListGoesThroughThePages) {
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

TEST_F(CommandsTest, ListShowsHowJobsWaitWhereOneDoes) {
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

TEST_F(CommandsTest, DescribeShowsWhatAJobWaitsForAndWhatIsKeptForIt) {
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

TEST_F(CommandsTest, QueuesAreATableAndChangedByWhatIsSaid) {
  EXPECT_THAT(client_.Run({"queues"}).err, HasSubstr("no queues"));
  v1::Queue& queue = *server_.service.queues.add_queues();
  queue.set_name("research");
  queue.set_weight(2.5);
  queue.set_slots_in_use(3);
  queue.set_slots_max(8);
  queue.set_queued(4);
  queue.mutable_run_time_default()->set_seconds(8 * 3600);
  queue.set_used_share(0.621);
  queue.set_expected_share(0.5);
  EXPECT_THAT(client_.Run({"queues"}).out, ::testing::ContainsRegex("research +2.5 +3 of 8 +4 +62% +50% +8h\n"));
  queue.set_expected_share(0);
  EXPECT_THAT(client_.Run({"queues"}).out, ::testing::ContainsRegex("62% +- +8h\n"));
  const json item = ItemsOf(client_.Run({"queues", "-o", "json"}))[0];
  EXPECT_EQ(item["name"], "research");
  EXPECT_EQ(item["run_time_default"], 28800);

  const Result set =
      client_.Run({"queues", "set", "research", "--weight", "2", "--run-time-default", "2h", "-o", "json"});
  EXPECT_EQ(set.exit_code, kExitSucceeded) << set.err;
  ASSERT_EQ(server_.service.queue_updates.size(), 1u);
  const v1::UpdateQueueRequest request = server_.service.queue_updates[0];
  EXPECT_EQ(request.queue().name(), "research");
  EXPECT_EQ(request.queue().weight(), 2);
  EXPECT_EQ(request.queue().run_time_default().seconds(), 7200);
  EXPECT_THAT(request.update_mask().paths(), ::testing::ElementsAre("weight", "run_time_default"));
  EXPECT_EQ(ItemsOf(set).size(), 1u) << "the queue, and not the list";
  client_.Run({"queues", "set", "research", "--slots-max", "0", "--waiting-max", "7"});
  EXPECT_THAT(server_.service.queue_updates[1].update_mask().paths(),
              ::testing::ElementsAre("slots_max", "queued_max"));
  EXPECT_EQ(server_.service.queue_updates[1].queue().queued_max(), 7);

  EXPECT_THAT(client_.Run({"queues", "set", "research"}).err, HasSubstr("nothing to change; give --weight"));
  EXPECT_EQ(client_.Run({"queues", "set", "research"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"queues", "set", "--weight", "1"}).exit_code, kExitUsage);
  EXPECT_THAT(client_.Run({"queues", "set", "research", "--run-time-default", "long"}).err, HasSubstr("such as 90s"));
  EXPECT_EQ(server_.service.queue_updates.size(), 2u);
}

TEST_F(CommandsTest, UpdateSendsWhatIsSaidAndShowsTheJob) {
  server_.service.job.mutable_spec()->set_priority(90);
  (*server_.service.job.mutable_spec()->mutable_labels())["team"] = "red\x1b";
  const Result result = client_.Run({"update", "job-1", "--priority", "90", "--label", "team=red", "--label", "old="});
  EXPECT_EQ(result.out, "job-1 is QUEUED, priority 90, labels team=red?\n");
  const v1::UpdateJobRequest& request = server_.service.updates[0];
  EXPECT_EQ(request.priority(), 90);
  EXPECT_EQ(request.labels().at("team"), "red");
  EXPECT_EQ(request.labels().at("old"), "");
  client_.Run({"update", "job-1", "--label", "a=b"});
  EXPECT_FALSE(server_.service.updates[1].has_priority());
  EXPECT_EQ(client_.Run({"update", "job-1"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"update", "job-1", "--label", "team"}).exit_code, kExitUsage);
  EXPECT_EQ(ItemsOf(client_.Run({"update", "job-1", "--priority", "1", "-o", "json"}))[0]["job_id"], "job-1");
}

TEST_F(CommandsTest, DrainMovesRanksOnlyWhenTold) {
  EXPECT_EQ(client_.Run({"drain", "gpu-7"}).exit_code, kExitSucceeded);
  EXPECT_EQ(client_.Run({"drain", "gpu-7", "--move"}).exit_code, kExitSucceeded);
  EXPECT_FALSE(server_.service.drains[0].move());
  EXPECT_TRUE(server_.service.drains[1].move());
}

TEST_F(CommandsTest, DescribeShowsOneRecordAsItIsTrained) {
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

TEST_F(CommandsTest, NoOutputLetsARecordActOnTheTerminal) {
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

TEST_F(CommandsTest, DescribeSaysWhyAJobDoesNotRun) {
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

TEST_F(CommandsTest, NonFiniteNumbersAreTextsInJson) {
  (*server_.service.job.mutable_progress()->mutable_values())["loss"] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(ItemsOf(client_.Run({"describe", "job-1", "-o", "json"}))[0]["progress"]["values"]["loss"], "nan");
}

TEST_F(CommandsTest, ErrorsHaveTheirExitCodes) {
  const Result missing = client_.Run({"describe", "job-7"});
  EXPECT_EQ(missing.exit_code, kExitRefused);
  EXPECT_EQ(missing.err, "longspan: there is no job job-7\n");
  const Result unimplemented = client_.Run({"pause", "job-1"});
  EXPECT_EQ(unimplemented.exit_code, kExitRefused);
  EXPECT_THAT(unimplemented.err, HasSubstr("this server cannot do that yet"));
  EXPECT_EQ(client_.Run({"fly"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"list", "--limit", "0"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"submit", "/no/such/file.yaml"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"--help"}).exit_code, kExitSucceeded);
  client_.variables["LONGSPAN_ADDRESS"] = "127.0.0.1:1";
  const Result away = client_.Run({"list"});
  EXPECT_EQ(away.exit_code, kExitConnection);
  EXPECT_THAT(away.err, HasSubstr("cannot reach the server at 127.0.0.1:1"));
  client_.variables["LONGSPAN_ADDRESS"] = "cluster.example:1";
  EXPECT_EQ(client_.Run({"list"}).exit_code, kExitUsage) << "plain text to another machine";
}

TEST_F(CommandsTest, AddressAndTokenComeFromFlagsThenVariablesThenTheFile) {
  std::ofstream(folder_ / "config.yaml") << "address: " << server_.address << "\ntoken: from-file\n";
  client_.variables = {{"LONGSPAN_CONFIG", folder_ / "config.yaml"}};
  EXPECT_EQ(client_.Run({"submit", JobFile()}).exit_code, kExitSucceeded);
  EXPECT_EQ(server_.service.authorization, "Bearer from-file");
  client_.variables["LONGSPAN_TOKEN"] = "from-variable";
  client_.Run({"submit", JobFile()});
  EXPECT_EQ(server_.service.authorization, "Bearer from-variable");
  std::ofstream(folder_ / "token") << "from-flag\n";
  client_.Run({"submit", JobFile(), "--token-file", folder_ / "token"});
  EXPECT_EQ(server_.service.authorization, "Bearer from-flag");
  std::ofstream(folder_ / "config.yaml") << "adress: x\n";
  const Result wrong = client_.Run({"list"});
  EXPECT_EQ(wrong.exit_code, kExitUsage);
  EXPECT_THAT(wrong.err, HasSubstr("unknown key adress"));
}

TEST_F(CommandsTest, LogsFollowThroughABrokenConnection) {
  server_.service.log = "line one\nline two\n";
  EXPECT_EQ(client_.Run({"logs", "job-1", "--follow"}).out, "line one\nline two\n");
  EXPECT_EQ(client_.Run({"logs", "job-1"}).exit_code, kExitConnection) << "without --follow a broken stream is told";
}

TEST_F(CommandsTest, WorkersAndCheckpointsAreTables) {
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

TEST_F(CommandsTest, DownloadResumesChecksAndStaysInItsFolder) {
  const auto add = [](v1::ListFilesResponse& list, const std::string& path, bool is_folder) {
    list.add_files()->set_path(path);
    list.mutable_files(list.files_size() - 1)->set_is_folder(is_folder);
  };
  add(server_.service.folders[""], "merged", true);
  add(server_.service.folders["merged"], "merged/config.json", false);
  const std::string text = "0123456789";
  server_.service.download_script = [&text](const v1::DownloadFileRequest& request,
                                            grpc::ServerWriter<v1::DownloadFileResponse>* writer) {
    v1::DownloadFileResponse response;
    response.set_data(
        text.substr(static_cast<size_t>(request.offset()), request.offset() == 0 ? 4 : std::string::npos));
    if (request.offset() > 0) response.set_sha256(storage::Sha256Hex(response.data()));
    writer->Write(response);
    return request.offset() == 0 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "away") : grpc::Status::OK;
  };
  const std::string to = folder_ / "here";
  const Result result = client_.Run({"download", "job-1", "--to", to});
  EXPECT_EQ(result.exit_code, kExitSucceeded) << result.err;
  std::stringstream read;
  read << std::ifstream(folder_ / "here/merged/config.json").rdbuf();
  EXPECT_EQ(read.str(), text);
  EXPECT_EQ(server_.service.downloads.back().offset(), 4);

  server_.service.download_script = [](const v1::DownloadFileRequest&,
                                       grpc::ServerWriter<v1::DownloadFileResponse>* writer) {
    v1::DownloadFileResponse response;
    response.set_data("x");
    response.set_sha256("00");
    writer->Write(response);
    return grpc::Status::OK;
  };
  EXPECT_THAT(client_.Run({"download", "job-1", "merged/none", "--to", to}).err, HasSubstr("no file or folder"));
  EXPECT_THAT(client_.Run({"download", "job-1", "merged", "--to", to}).err, HasSubstr("arrived damaged"));
  server_.service.folders["merged"].mutable_files(0)->set_path("../../escape");
  EXPECT_THAT(client_.Run({"download", "job-1", "merged", "--to", to}).err, HasSubstr("no plain relative path"));
}

TEST_F(CommandsTest, CompletionKnowsEveryCommand) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const Result result = client_.Run({"completion", shell});
    EXPECT_EQ(result.exit_code, kExitSucceeded);
    for (const char* command :
         {"submit", "plan",    "list",        "describe", "watch",    "logs",    "cancel",    "delete",
          "pause",  "resume",  "checkpoints", "export",   "download", "queues",  "update",    "slots-max",
          "move",   "workers", "drain",       "undrain",  "dev",      "version", "completion"}) {
      EXPECT_THAT(result.out, HasSubstr(command)) << shell;
    }
  }
  EXPECT_EQ(client_.Run({"completion", "tcsh"}).exit_code, kExitUsage);
  EXPECT_THAT(client_.Run({"version"}).out, ::testing::ContainsRegex("^longspan [0-9]+\\.[0-9]+"));
}

}  // namespace
}  // namespace longspan::client
