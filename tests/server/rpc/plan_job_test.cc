// PlanJob, and the jobs that a submit refuses because they fit nowhere.
#include "server/rpc/plan_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "proto/support/job_spec_messages.h"
#include "proto/support/status.h"
#include "server/rpc/fit_cache.h"
#include "tests/server/rpc/test_cluster.h"

namespace longspan::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

constexpr int64_t kGibibyte = int64_t{1} << 30;

constexpr char kConfig[] = R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, "rms_norm_eps": 1e-5,
  "max_position_embeddings": 256})";

std::string ReasonOf(const grpc::Status& status) { return DetailsOf(ToAbslStatus(status)).reason; }

class Plan : public ::testing::Test {
 protected:
  Plan() {
    std::filesystem::create_directories(model());
    std::ofstream(model() / "config.json") << kConfig;
  }

  std::filesystem::path model() const { return models_.path() / "tiny"; }

  v1::JobSpec Spec(int64_t context = 1024) const {
    v1::JobSpec spec = ValidSpec();
    spec.set_context_length(context);
    spec.mutable_model()->set_path(model().string());
    return spec;
  }

  void AddWorker(const std::string& worker_id, const std::string& device, int64_t memory_bytes) {
    TestWorker& worker = workers_.try_emplace(worker_id, &cluster_, worker_id).first->second;
    worker.state().mutable_slots(0)->set_device(device);
    worker.state().mutable_slots(0)->set_memory_bytes(memory_bytes);
    ASSERT_TRUE(worker.Synchronize().ok());
  }

  grpc::Status Ask(const v1::PlanJobRequest& request, v1::PlanJobResponse* response) {
    return cluster_.client().PlanJob(NewContext().get(), request, response);
  }
  v1::PlanJobResponse Ask(const v1::PlanJobRequest& request) {
    v1::PlanJobResponse response;
    const grpc::Status status = Ask(request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::PlanJobRequest RequestFor(const v1::JobSpec& spec) const {
    v1::PlanJobRequest request;
    *request.mutable_spec() = spec;
    return request;
  }

  grpc::Status Submit(const v1::JobSpec& spec, bool validate_only = false, const std::string& id = "request-1") {
    v1::SubmitJobRequest request;
    if (!validate_only) request.set_request_id(id);
    *request.mutable_spec() = spec;
    request.set_validate_only(validate_only);
    v1::SubmitJobResponse response;
    return cluster_.client().SubmitJob(NewContext().get(), request, &response);
  }

  // The worker that gets the rank of the one job that is there, once its data is prepared by any.
  std::string WorkerOfRun() {
    for (int round = 0; round < 50; ++round) {
      for (auto& [worker_id, worker] : workers_) {
        v1::SynchronizeResponse response;
        EXPECT_TRUE(worker.Synchronize(&response).ok());
        if (response.desired_ranks_size() == 0) continue;
        if (response.desired_ranks(0).command() == "run") return worker_id;
        worker.StartRank("prepare");
        worker.FinishRank();
      }
    }
    return "nowhere";
  }

  TemporaryFolder models_;
  TestCluster cluster_;
  std::map<std::string, TestWorker> workers_;
};

TEST_F(Plan, OfARegisteredSlotSaysAllThereIs) {
  AddWorker("worker-a", "cpu", 4 * kGibibyte);
  const v1::PlanJobResponse plan = Ask(RequestFor(Spec()));
  EXPECT_EQ(plan.verdict(), v1::PlanJobResponse::VERDICT_FITS);
  EXPECT_EQ(plan.place(), "slot 0 of worker-a (cpu)");
  int64_t sum = 0;
  std::vector<std::string> kinds;
  for (const auto& [kind, bytes] :
       std::map<std::string, int64_t>(plan.memory_bytes().begin(), plan.memory_bytes().end())) {
    kinds.push_back(kind);
    sum += bytes;
  }
  EXPECT_THAT(kinds,
              ElementsAre("activations", "batch", "collectives", "gradients", "optimizer", "weights", "workspace"));
  EXPECT_EQ(plan.device_bytes(), sum);
  EXPECT_GT(plan.device_bytes_limit(), 3 * kGibibyte);
  EXPECT_LT(plan.device_bytes_limit(), 4 * kGibibyte);
  EXPECT_EQ(plan.kept_bytes().at("input"), 2 * 1024 * 64 * 4);
  EXPECT_EQ(plan.policy().keep(), v1::MemorySpec::KEEP_GATE_UP);
  EXPECT_TRUE(plan.policy().has_host_layers());
  EXPECT_THAT(plan.policy_summary(), StartsWith("each layer keeps all but norms"));
  EXPECT_DOUBLE_EQ(plan.token_flops() * 64 * 1024, plan.step_flops());
  EXPECT_GT(plan.executed_step_flops(), 0);
  EXPECT_NEAR(plan.tokens_per_second() * plan.step_seconds(), 64 * 1024, 1e-3);
  EXPECT_THAT(plan.device_profile(), StartsWith("cpu, 1 thread"));
  EXPECT_GT(plan.longest_context(), 1024);
  EXPECT_GT(plan.trained_parameters(), 64 * 1000);
  EXPECT_THAT(plan.summary(), AllOf(StartsWith("fits: "), HasSubstr("worker-a"), HasSubstr("tokens/s")));
  EXPECT_THAT(plan.would_fit(), IsEmpty());
}

TEST_F(Plan, TakesTheLargestSlotAndPrefersAGpu) {
  AddWorker("worker-a", "cpu", 4 * kGibibyte);
  AddWorker("worker-b", "cpu", 8 * kGibibyte);
  EXPECT_EQ(Ask(RequestFor(Spec())).place(), "slot 0 of worker-b (cpu)");
  AddWorker("worker-c", "NVIDIA H100 80GB HBM3", kGibibyte * 6 / 5);
  const v1::PlanJobResponse plan = Ask(RequestFor(Spec()));
  EXPECT_EQ(plan.place(), "slot 0 of worker-c (NVIDIA H100 80GB HBM3)");
  EXPECT_EQ(plan.device_profile(), "NVIDIA H100");
  // Where it does not fit into that one, into another.
  EXPECT_EQ(Ask(RequestFor(Spec(500'000))).place(), "slot 0 of worker-b (cpu)");
}

TEST_F(Plan, WithoutAnyMemoryToFitIntoHasNoVerdict) {
  const v1::PlanJobResponse plan = Ask(RequestFor(Spec()));
  EXPECT_EQ(plan.verdict(), v1::PlanJobResponse::VERDICT_UNSPECIFIED);
  EXPECT_THAT(plan.summary(), StartsWith("memory is not limited: "));
  EXPECT_FALSE(plan.has_longest_context());
  EXPECT_EQ(plan.device_bytes_limit(), 0);
  EXPECT_GT(plan.device_bytes(), 0);
}

TEST_F(Plan, TakesLimitsAndRatesOfTheRequest) {
  AddWorker("worker-a", "cpu", 4 * kGibibyte);
  v1::PlanJobRequest request = RequestFor(Spec(4096));
  const int64_t roomy = Ask(request).device_bytes();
  request.set_device_bytes(roomy * 2 / 3);
  v1::PlanJobResponse unanswered;
  const v1::PlanJobResponse tight = Ask(request);
  EXPECT_EQ(tight.verdict(), v1::PlanJobResponse::VERDICT_FITS);
  EXPECT_EQ(tight.device_bytes_limit(), roomy * 2 / 3);
  EXPECT_LE(tight.device_bytes(), roomy * 2 / 3);
  EXPECT_EQ(tight.place(), "");
  EXPECT_NE(tight.policy().keep(), v1::MemorySpec::KEEP_GATE_UP);
  v1::DeviceProfile* profile = request.mutable_device_profile();
  profile->set_name("bench");
  profile->set_gemm_flops_per_second(1e12);
  profile->set_attention_flops_per_second(1e12);
  profile->set_memory_bytes_per_second(1e11);
  EXPECT_EQ(ReasonOf(Ask(request, &unanswered)), "INVALID_FIELDS");  // a rate is missing
  profile->set_host_copy_bytes_per_second(1e10);
  EXPECT_EQ(Ask(request).device_profile(), "bench");
  EXPECT_GT(Ask(request).tokens_per_second(), tight.tokens_per_second());
}

TEST_F(Plan, SaysWhatWouldFit) {
  AddWorker("worker-a", "cpu", kGibibyte / 2);
  const v1::PlanJobResponse plan = Ask(RequestFor(Spec(1 << 20)));
  EXPECT_EQ(plan.verdict(), v1::PlanJobResponse::VERDICT_DOES_NOT_FIT);
  EXPECT_GT(plan.device_bytes(), kGibibyte / 2);
  EXPECT_THAT(plan.summary(),
              AllOf(StartsWith("does not fit: needs at least "), HasSubstr("would fit: context_length: ")));
  ASSERT_GT(plan.longest_context(), 1024);
  EXPECT_EQ(Ask(RequestFor(Spec(plan.longest_context()))).verdict(), v1::PlanJobResponse::VERDICT_FITS);
  EXPECT_EQ(Ask(RequestFor(Spec(plan.longest_context() + 1))).verdict(), v1::PlanJobResponse::VERDICT_DOES_NOT_FIT);
}

TEST_F(Plan, NeedsToSeeTheModelsFolder) {
  std::filesystem::remove(model() / "config.json");
  v1::PlanJobResponse response;
  const grpc::Status status = Ask(RequestFor(Spec()), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(status), "MODEL_NOT_VISIBLE");
  EXPECT_THAT(status.error_message(), HasSubstr("planning needs " + (model() / "config.json").string()));
  std::ofstream(model() / "config.json") << R"({"architectures": ["UnknownForCausalLM"]})";
  const grpc::Status unknown = Ask(RequestFor(Spec()), &response);
  EXPECT_EQ(unknown.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(unknown.error_message(), HasSubstr("UnknownForCausalLM"));
  v1::JobSpec wrong = Spec();
  wrong.set_priority(1000);
  EXPECT_THAT(Ask(RequestFor(wrong), &response).error_message(), HasSubstr("spec.priority"));
}

TEST_F(Plan, ReadsNothingOutsideOfTheRoots) {
  TestCluster cluster([&](rpc::RpcServerOptions* options) { options->training.roots = {models_.path(), "/shared"}; });
  std::filesystem::remove(model() / "config.json");
  TemporaryFolder elsewhere;
  std::ofstream(elsewhere.path() / "config.json") << kConfig;
  std::filesystem::create_symlink(elsewhere.path() / "config.json", model() / "config.json");
  v1::PlanJobResponse response;
  const grpc::Status status = cluster.client().PlanJob(NewContext().get(), RequestFor(Spec()), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("link out of the folders"));
}

TEST_F(Plan, OfAnEvaluationSaysThatThereIsNone) {
  v1::JobSpec spec = Spec();
  spec.set_kind(v1::JobSpec::KIND_EVALUATE);
  spec.mutable_model()->set_path("/shared/models/not-here");
  const v1::PlanJobResponse plan = Ask(RequestFor(spec));
  EXPECT_THAT(plan.summary(), HasSubstr("kind evaluate are not planned"));
  EXPECT_EQ(plan.verdict(), v1::PlanJobResponse::VERDICT_UNSPECIFIED);
}

TEST_F(Plan, AJobThatFitsNowhereIsRefusedAtSubmit) {
  AddWorker("worker-a", "cpu", kGibibyte / 2);
  for (const bool validate_only : {false, true}) {
    const grpc::Status status = Submit(Spec(1 << 20), validate_only);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(ReasonOf(status), "DOES_NOT_FIT");
    EXPECT_THAT(status.error_message(),
                AllOf(HasSubstr("it does not fit: needs at least"), HasSubstr("would fit: context_length: ")));
  }
  v1::ListJobsResponse jobs;
  ASSERT_TRUE(cluster_.client().ListJobs(NewContext().get(), {}, &jobs).ok());
  EXPECT_EQ(jobs.jobs_size(), 0);
  EXPECT_TRUE(Submit(Spec(1024)).ok());
  AddWorker("worker-b", "cpu", 64 * kGibibyte);
  EXPECT_TRUE(Submit(Spec(1 << 20), false, "request-2").ok());
}

TEST_F(Plan, AJobIsTakenWhereNobodyCanTellWhetherItFits) {
  EXPECT_TRUE(Submit(Spec(1 << 20), false, "no worker").ok());
  AddWorker("worker-a", "cpu", kGibibyte / 2);
  EXPECT_FALSE(Submit(Spec(1 << 20), false, "too small").ok());
  v1::JobSpec elsewhere = Spec(1 << 20);
  elsewhere.mutable_model()->set_path("/shared/models/not-here");
  EXPECT_TRUE(Submit(elsewhere, false, "not visible").ok());
  AddWorker("worker-b", "cpu", 0);
  EXPECT_TRUE(Submit(Spec(1 << 20), false, "not known").ok());
}

TEST_F(Plan, AJobThatWasTakenStaysTakenWhenTheSlotsHaveChanged) {
  EXPECT_TRUE(Submit(Spec(1 << 20)).ok());
  AddWorker("worker-a", "cpu", kGibibyte / 2);
  EXPECT_TRUE(Submit(Spec(1 << 20)).ok());
  EXPECT_FALSE(Submit(Spec(1 << 20), false, "another").ok());
}

TEST_F(Plan, AJobIsPlacedOnlyWhereItsRanksHaveRoom) {
  AddWorker("a-small", "cpu", kGibibyte / 2);
  AddWorker("b-large", "cpu", 64 * kGibibyte);
  const auto needs = [&](const v1::JobSpec& spec) {
    return rpc::CheckFits(jobfile::FromMessage(spec).spec, {},
                          {{"b-large", 0, "cpu", 64 * kGibibyte}, {"a-small", 0, "cpu", kGibibyte / 2}}, nullptr)
        .memory_bytes_min;
  };
  EXPECT_GT(needs(Spec(1 << 20)), kGibibyte / 2);
  EXPECT_LT(needs(Spec(1 << 20)), 64 * kGibibyte);
  EXPECT_LT(needs(Spec(1024)), kGibibyte / 2);
  EXPECT_GT(needs(Spec(1024)), 0);

  // The name of the small one comes first, and its slot is free: the large job goes to the other all the same.
  ASSERT_TRUE(Submit(Spec(1 << 20), false, "request-large").ok());
  EXPECT_EQ(WorkerOfRun(), "b-large");
}

TEST_F(Plan, WhatTheJobFileSaysOfMemoryCounts) {
  AddWorker("a-small", "cpu", kGibibyte);
  AddWorker("b-large", "cpu", 64 * kGibibyte);
  v1::JobSpec spec = Spec(1024);
  spec.mutable_resources()->set_memory_bytes_min(2 * kGibibyte);
  ASSERT_TRUE(Submit(spec).ok());
  EXPECT_EQ(WorkerOfRun(), "b-large");
}

TEST(SlotMemory, OneNumberTellsKindsApartWhereItCan) {
  TemporaryFolder models;
  std::ofstream(models.path() / "config.json") << kConfig;
  v1::JobSpec message = ValidSpec();
  message.set_context_length(1 << 22);
  message.mutable_model()->set_path(models.path().string());
  const jobfile::JobSpec spec = jobfile::FromMessage(message).spec;
  const auto needs = [&](const std::vector<rpc::SlotMemory>& slots) {
    return rpc::CheckFits(spec, {}, slots, nullptr).memory_bytes_min;
  };
  const int64_t on_gpu = needs({{"a", 0, "NVIDIA H100", 80 * kGibibyte}});
  const int64_t on_cpu = needs({{"a", 0, "cpu", 80 * kGibibyte}});
  ASSERT_LT(on_gpu, on_cpu) << "bf16 takes less than fp32";
  // A CPU slot between the two is too small, and left out as long as a larger slot fits.
  const int64_t between = (on_gpu + on_cpu) / 2;
  EXPECT_EQ(needs({{"a", 0, "NVIDIA H100", 80 * kGibibyte}, {"b", 0, "cpu", between}}), between + 1);
  EXPECT_EQ(needs({{"a", 0, "NVIDIA H100", on_gpu}, {"b", 0, "cpu", between}}), on_gpu) << "no number tells them apart";
}

TEST(SlotMemory, OfAnElasticJobIsThatOfItsSmallestGang) {
  TemporaryFolder models;
  std::ofstream(models.path() / "config.json") << kConfig;
  v1::JobSpec message = ValidSpec();
  message.mutable_model()->set_path(models.path().string());
  message.mutable_resources()->set_slots(4);
  message.mutable_resources()->set_shard_weights(true);
  const auto needs = [&](int64_t slots_min) {
    message.mutable_resources()->set_slots_min(slots_min);
    return rpc::CheckFits(jobfile::FromMessage(message).spec, {}, {{"a", 0, "NVIDIA H100", 80 * kGibibyte}}, nullptr)
        .memory_bytes_min;
  };
  EXPECT_GT(needs(1), needs(4));
}

TEST(SlotKinds, AreEachOnceGpusFirstAndFollowTheWorkers) {
  core::Core core{core::CoreOptions()};
  absl::Time now = absl::UnixEpoch();
  core.Step(core::Restarted{}, now);
  const auto report = [&](const char* worker, int64_t sequence, std::vector<core::Slot> slots) {
    core::WorkerReport event;
    event.worker_id = WorkerId(worker);
    event.incarnation_id = worker;
    event.sequence = sequence;
    event.slots = std::move(slots);
    core.Step(event, now += absl::Seconds(1));
  };
  const auto kinds = [&] {
    std::vector<std::pair<std::string, int64_t>> found;
    for (const rpc::SlotMemory& slot : rpc::SlotsToPlanFor(core.ListSlotKinds())) {
      found.emplace_back(slot.worker_id, slot.memory_bytes);
    }
    return found;
  };
  report("a", 1, {{0, "cpu", 10}, {1, "cpu", 10}, {2, "cpu", 30}});
  report("b", 1, {{0, "cpu", 10}, {1, "NVIDIA A100", 20}});
  EXPECT_THAT(kinds(), ElementsAre(std::pair("b", 20), std::pair("a", 30), std::pair("a", 10)));
  report("a", 2, {{0, "cpu", 40}});
  EXPECT_THAT(kinds(), ElementsAre(std::pair("b", 20), std::pair("a", 40), std::pair("b", 10)));
}

TEST(FitCache, TheSameShapeIsPlannedOnceAndEverythingThatThePlannerReadsIsInTheKey) {
  TemporaryFolder models;
  std::ofstream(models.path() / "config.json") << kConfig;
  v1::JobSpec message = ValidSpec();
  message.mutable_model()->set_path(models.path().string());
  const jobfile::JobSpec spec = jobfile::FromMessage(message).spec;
  const std::vector<rpc::SlotMemory> slots = {{"a", 0, "cpu", 80 * kGibibyte}};
  const auto key = [&](const jobfile::JobSpec& of) { return rpc::FitCache::KeyOf(of, {kConfig}, slots); };
  const auto need = [&](const jobfile::JobSpec& of) { return rpc::CheckFits(of, {}, slots, nullptr).memory_bytes_min; };
  rpc::FitCache cache;
  ASSERT_GT(need(spec), 0);
  EXPECT_EQ(rpc::CheckFits(spec, {}, slots, &cache).memory_bytes_min, need(spec));
  EXPECT_EQ(cache.Find(key(spec)), need(spec));

  // What is left out of the key changes nothing.
  jobfile::JobSpec same = spec;
  same.name = "another";
  same.queue = "other";
  same.priority = 90;
  same.labels = {{"a", "b"}};
  same.limits.max_attempts = 7;
  same.limits.max_run_time_seconds = 60;
  same.training.seed = 99;
  same.training.learning_rate = 0.5;
  EXPECT_EQ(key(same), key(spec));
  EXPECT_EQ(need(same), need(spec));

  // A wrong entry would be found: the answer is the cache's, and another key's is not.
  rpc::FitCache wrong;
  wrong.Put(key(spec), 7);
  EXPECT_EQ(rpc::CheckFits(same, {}, slots, &wrong).memory_bytes_min, 7);
  jobfile::JobSpec longer = spec;
  longer.context_length *= 2;
  EXPECT_EQ(rpc::CheckFits(longer, {}, slots, &wrong).memory_bytes_min, need(longer));
  EXPECT_NE(rpc::FitCache::KeyOf(spec, {kConfig}, {{"a", 0, "cpu", 81 * kGibibyte}}), key(spec));
  std::ofstream(models.path() / "config.json", std::ios::app) << "\n";
  EXPECT_EQ(rpc::CheckFits(spec, {}, slots, &wrong).memory_bytes_min, need(spec)) << "another file, another key";
}

TEST(FitCache, ForgetsWhatWasNotAskedForLongest) {
  rpc::FitCache cache(2);
  cache.Put("a", 1);
  cache.Put("b", 2);
  EXPECT_EQ(cache.Find("a"), 1);
  cache.Put("c", 3);
  EXPECT_EQ(cache.Find("b"), std::nullopt);
  EXPECT_EQ(cache.Find("a"), 1);
  EXPECT_EQ(cache.Find("c"), 3);
}

}  // namespace
}  // namespace longspan::testing
