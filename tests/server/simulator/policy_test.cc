// The rules that the scheduler is compared with, on small traces that tell them apart. Times in seconds.
#include "server/simulator/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/simulator/generator.h"
#include "server/simulator/simulation.h"

namespace longspan::simulator {
namespace {

TraceJob Job(const std::string& id, double submit, int64_t slots, double run_time, double limit) {
  TraceJob job;
  job.id = JobId(id);
  job.submit = absl::Seconds(submit);
  job.sizes = {slots};
  job.run_time = job.planned_run_time = absl::Seconds(run_time);
  job.limit = absl::Seconds(limit);
  return job;
}

std::vector<double> Starts(const std::string& policy, const ClusterSpec& cluster, const std::vector<TraceJob>& trace) {
  SimulationOptions options;
  options.estimate_by_progress = false;
  const std::unique_ptr<Policy> made = *MakePolicy(policy, {});
  std::vector<double> starts;
  for (const JobOutcome& outcome : Simulate(cluster, trace, options, *made).jobs) {
    starts.push_back(absl::ToDoubleSeconds(outcome.start - absl::UnixEpoch()));
  }
  return starts;
}

ClusterSpec Workers(int64_t count, int64_t slots) {
  ClusterSpec cluster;
  cluster.groups.push_back({});
  cluster.groups.back().count = count;
  cluster.groups.back().slots = slots;
  return cluster;
}

TEST(PolicyTest, AnUnknownNameIsAnErrorThatNamesTheKnownOnes) {
  EXPECT_THAT(std::string(MakePolicy("lifo", {}).status().message()), ::testing::HasSubstr("fifo-backfill and slurm"));
}

// A large job waits for 3600 s; a short one fits beside it, a long one would delay it.
TEST(PolicyTest, FifoLetsNobodyOvertakeAndBackfillWhoDelaysNotTheFirst) {
  const std::vector<TraceJob> trace = {Job("runs", 0, 3, 3600, 3600), Job("large", 60, 4, 600, 600),
                                       Job("long", 120, 1, 7200, 7200), Job("short", 180, 1, 600, 600)};
  EXPECT_EQ(Starts("fifo", Workers(1, 4), trace), (std::vector<double>{0, 3600, 4200, 4200}));
  EXPECT_EQ(Starts("fifo-backfill", Workers(1, 4), trace), (std::vector<double>{0, 3600, 4200, 180}));
}

// EASY keeps the first job's start alone: `second` is overtaken by `long`, which Slurm has planned behind it.
TEST(PolicyTest, SlurmDelaysNoneOfThoseInFront) {
  std::vector<TraceJob> trace = {Job("runs", 0, 3, 3600, 3600), Job("first", 60, 2, 600, 600),
                                 Job("second", 120, 4, 600, 600), Job("long", 180, 1, 7200, 7200)};
  trace[1].priority = 60;  // or the larger one would go before it
  EXPECT_EQ(Starts("fifo-backfill", Workers(1, 4), trace), (std::vector<double>{0, 3600, 7380, 180}));
  const std::vector<double> starts = Starts("slurm", Workers(1, 4), trace);
  EXPECT_EQ(starts[1], 3600);
  EXPECT_EQ(starts[2], 4200) << "when the first ends";
  EXPECT_GE(starts[3], 4800);
}

// Fair share outweighs age: the queue that has used nothing goes first although it came later.
TEST(PolicyTest, SlurmAsksTheQueueFirstThatHadLess) {
  ClusterSpec cluster = Workers(1, 1);
  cluster.queues["busy"];
  cluster.queues["idle"];
  std::vector<TraceJob> trace = {Job("b1", 0, 1, 3600, 3600), Job("b2", 10, 1, 60, 60), Job("i1", 20, 1, 60, 60)};
  trace[0].queue = trace[1].queue = "busy";
  trace[2].queue = "idle";
  EXPECT_EQ(Starts("slurm", cluster, trace), (std::vector<double>{0, 3660, 3600}));
  EXPECT_EQ(Starts("fifo-backfill", cluster, trace), (std::vector<double>{0, 3600, 3660}));
}

// With the same use, the larger and the older job: job size counts 1000 for the whole cluster, age 1000 for a week.
TEST(PolicyTest, SlurmPrefersTheLargerJob) {
  const std::vector<TraceJob> trace = {Job("runs", 0, 4, 3600, 3600), Job("small", 10, 1, 60, 60),
                                       Job("large", 20, 4, 60, 60)};
  EXPECT_EQ(Starts("slurm", Workers(1, 4), trace), (std::vector<double>{0, 3660, 3600}));
}

TEST(PolicyTest, PriorityComesFirstEverywhere) {
  std::vector<TraceJob> trace = {Job("runs", 0, 1, 3600, 3600), Job("older", 10, 1, 60, 60),
                                 Job("higher", 20, 1, 60, 60)};
  trace[0].priority = trace[2].priority = 60;
  for (const char* policy : {"longspan", "fifo", "fifo-backfill", "slurm"}) {
    EXPECT_EQ(Starts(policy, Workers(1, 1), trace), (std::vector<double>{0, 3660, 3600})) << policy;
  }
}

TEST(PolicyTest, EveryPolicyRunsEveryJobOfALargerTrace) {
  GeneratorOptions options;
  options.workers = 12;
  options.duration = absl::Hours(48);
  options.load = 1.5;
  options.required_gpu = 0.2;
  const GeneratedTrace trace = GenerateTrace(options);
  for (const char* name : {"longspan", "fifo", "fifo-backfill", "slurm"}) {
    const std::unique_ptr<Policy> policy = *MakePolicy(name, {});
    const SimulationResult result = Simulate(trace.cluster, trace.jobs, {}, *policy);
    for (size_t i = 0; i < trace.jobs.size(); ++i) {
      const bool possible = trace.jobs[i].requirements.labels.empty() || trace.jobs[i].LargestSize() <= 48;
      EXPECT_EQ(result.jobs[i].end < absl::InfiniteFuture(), possible) << name << " " << trace.jobs[i].id;
    }
  }
}

}  // namespace
}  // namespace longspan::simulator
