// submit, plan and evaluate: what they send, what they print, how they exit.
#include <fstream>

#include "client/exit_codes.h"
#include "proto/support/status.h"
#include "tests/client/commands_fixture.h"

namespace longspan::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using SubmitTest = CommandsTest;

TEST_F(SubmitTest, SubmitSendsTheJobFileWithAbsolutePathsAndARequestId) {
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

TEST_F(SubmitTest, SubmitIsRetriedUnderTheSameRequestId) {
  server_.service.unavailable_submits = 2;
  EXPECT_EQ(client_.Run({"submit", JobFile()}).exit_code, kExitSucceeded);
  ASSERT_EQ(server_.service.submitted.size(), 3u);
  EXPECT_EQ(server_.service.submitted[0].request_id(), server_.service.submitted[2].request_id());
}

TEST_F(SubmitTest, AWrongJobFileIsToldBeforeAnythingIsSent) {
  std::ofstream(JobFile())
      << "name: extend\nmodel: {path: m}\ndata: {sources: [x]}\ncontext_length: 1024\ntrainin:\n  steps: 5\n";
  const Result result = client_.Run({"submit", JobFile()});
  EXPECT_EQ(result.exit_code, kExitUsage);
  EXPECT_THAT(result.err, HasSubstr("line 5: trainin: unknown key; did you mean training?"));
  EXPECT_TRUE(server_.service.submitted.empty());
}

TEST_F(SubmitTest, TheServersRefusalIsShownWithEveryField) {
  server_.service.submit_status =
      ToGrpcStatus(WithDetails(absl::InvalidArgumentError("the job cannot be accepted"),
                               {"", {}, {{"spec.model.path", "lies outside of the roots"}}}));
  const Result result = client_.Run({"submit", JobFile()});
  EXPECT_EQ(result.exit_code, kExitRefused);
  EXPECT_THAT(result.err,
              AllOf(HasSubstr("the job cannot be accepted"), HasSubstr("spec.model.path: lies outside of the roots")));
}

TEST_F(SubmitTest, EvaluateSendsAJobOfItsKindAndShowsItsScores) {
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

TEST_F(SubmitTest, PlanShowsMemoryPolicyWorkAndVerdict) {
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

TEST_F(SubmitTest, PlanEndsWithTheCodeOfARefusalWhereTheJobDoesNotFit) {
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

TEST_F(SubmitTest, PlanSendsLimitsAndAProfile) {
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

}  // namespace
}  // namespace longspan::client
