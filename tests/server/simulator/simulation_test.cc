// The model: who ends when, what a stop costs, what estimates a policy sees. Times in seconds.
#include "server/simulator/simulation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "server/simulator/generator.h"
#include "server/simulator/report.h"

namespace longspan::simulator {
namespace {

ClusterSpec Slots(int64_t slots) {
  ClusterSpec cluster;
  cluster.groups.push_back({});
  cluster.groups.back().slots = slots;
  return cluster;
}

TraceJob Job(const std::string& id, double submit, std::vector<int64_t> sizes, double run_time) {
  TraceJob job;
  job.id = JobId(id);
  job.submit = absl::Seconds(submit);
  job.sizes = std::move(sizes);
  job.run_time = job.planned_run_time = absl::Seconds(run_time);
  return job;
}

// Hands the decisions of another one on, and lets a test see what was asked.
class Watched : public Policy {
 public:
  using Watch = std::function<void(const scheduler::Snapshot&, absl::Time)>;
  explicit Watched(Watch watch, const PolicyOptions& options = {})
      : watch_(std::move(watch)), policy_(*MakePolicy("longspan", options)) {}
  Decision Pass(const scheduler::Snapshot& snapshot, absl::Time now) override {
    if (watch_) watch_(snapshot, now);
    return policy_->Pass(snapshot, now);
  }

 private:
  Watch watch_;
  std::unique_ptr<Policy> policy_;
};

SimulationResult Replay(const ClusterSpec& cluster, const std::vector<TraceJob>& trace,
                        const SimulationOptions& options = {}, const Watched::Watch& watch = nullptr) {
  Watched policy(watch);
  return Simulate(cluster, trace, options, policy);
}

double Seconds(absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); }

TEST(SimulationTest, OneAfterTheOther) {
  const SimulationResult result =
      Replay(Slots(2), {Job("a", 0, {2}, 100), Job("b", 10, {1}, 50), Job("c", 20, {1}, 70)});
  EXPECT_EQ(Seconds(result.jobs[0].end), 100);
  EXPECT_EQ(Seconds(result.jobs[1].start), 100);
  EXPECT_EQ(Seconds(result.jobs[2].start), 100) << "at the moment in which the slots come free";
  EXPECT_EQ(Seconds(result.end), 170);
  EXPECT_DOUBLE_EQ(result.held_whole, 2 * 100 + 50 + 70);
  EXPECT_DOUBLE_EQ(result.useful_slot_seconds, 2 * 100 + 50 + 70);
  EXPECT_DOUBLE_EQ(result.lost_slot_seconds, 0);
  EXPECT_DOUBLE_EQ(result.held_slot_seconds, 2 * 20) << "up to the last submit";
}

TEST(SimulationTest, ALimitEndsAJobAndAQueuesDefaultDoesNot) {
  ClusterSpec cluster = Slots(2);
  cluster.queues["short"].run_time_default = absl::Seconds(10);
  TraceJob limited = Job("a", 0, {1}, 100);
  limited.limit = absl::Seconds(30);
  TraceJob unlimited = Job("b", 0, {1}, 100);
  unlimited.queue = "short";
  const SimulationResult result = Replay(cluster, {limited, unlimited});
  EXPECT_EQ(Seconds(result.jobs[0].end), 30);
  EXPECT_TRUE(result.jobs[0].ended_by_limit);
  EXPECT_EQ(Seconds(result.jobs[1].end), 100);
  EXPECT_FALSE(result.jobs[1].ended_by_limit);
}

TEST(SimulationTest, EstimatesAreTheLimitElseTheDefaultElseTheProgress) {
  ClusterSpec cluster = Slots(1);
  cluster.queues["q"].run_time_default = absl::Seconds(5000);
  TraceJob first = Job("first", 0, {1}, 1000);
  first.queue = "q";
  first.planned_run_time = absl::Seconds(1500);
  TraceJob limited = Job("limited", 10, {1}, 100);
  limited.limit = absl::Seconds(700);
  TraceJob late = Job("late", 500, {1}, 100);
  for (const bool by_progress : {true, false}) {
    SimulationOptions options;
    options.estimate_by_progress = by_progress;
    double at_10 = 0, at_500 = 0, waiting = 0;
    Replay(cluster, {first, limited, late}, options, [&](const scheduler::Snapshot& snapshot, absl::Time now) {
      if (Seconds(now) == 10) at_10 = Seconds(snapshot.gangs.at(0).expected_end);
      if (Seconds(now) == 500) at_500 = Seconds(snapshot.gangs.at(0).expected_end);
      if (Seconds(now) == 10) waiting = absl::ToDoubleSeconds(snapshot.jobs.at(0).estimate);
    });
    EXPECT_EQ(at_10, 5000) << "no progress yet";
    EXPECT_NEAR(at_500, by_progress ? 1500 : 5000, 1e-6);
    EXPECT_EQ(waiting, 700);
  }
}

TEST(SimulationTest, APreemptedGangLosesWhatItDidSinceItsCheckpoint) {
  // Runs 1000 s of 3000; saved at 900. It stops for 60 s, the other runs 100 s, and it starts again with 30 s of setup.
  TraceJob low = Job("low", 0, {2}, 3000);
  low.priority = 10;
  const TraceJob high = Job("high", 1000, {2}, 100);
  SimulationOptions options;
  options.checkpoint_interval = absl::Seconds(300);
  options.restart_time = absl::Seconds(30);
  const SimulationResult result = Replay(Slots(2), {low, high}, options);
  EXPECT_EQ(result.jobs[0].preemptions, 1);
  EXPECT_EQ(Seconds(result.jobs[1].start), 1060);
  EXPECT_EQ(Seconds(result.jobs[0].end), 1160 + 30 + 2100);
  EXPECT_DOUBLE_EQ(result.lost_slot_seconds, 2 * (100 + 60 + 30));
  options.checkpoint_interval = absl::ZeroDuration();
  EXPECT_EQ(Seconds(Replay(Slots(2), {low, high}, options).jobs[0].end), 1160 + 30 + 2000) << "the stop saves";
}

TEST(SimulationTest, AGangIsNotPreemptedBeforeItsMinimumRunTime) {
  TraceJob low = Job("low", 0, {1}, 3000);
  low.priority = 10;
  SimulationOptions options;
  options.min_run_time = absl::Seconds(600);
  const SimulationResult result = Replay(Slots(1), {low, Job("high", 30, {1}, 100)}, options);
  EXPECT_EQ(Seconds(result.jobs[1].start), 600 + 60) << "asked at the pass at 600 s, gone 60 s later";
}

TEST(SimulationTest, AnElasticGangWorksByItsShareOfTheLargestSize) {
  const std::vector<TraceJob> trace = {Job("a-rigid", 0, {2}, 100), Job("b-elastic", 0, {2, 4}, 100)};
  EXPECT_EQ(Seconds(Replay(Slots(4), trace).jobs[1].end), 200);
  SimulationOptions options;
  options.scaling_efficiency = 0.5;
  EXPECT_NEAR(Seconds(Replay(Slots(4), trace, options).jobs[1].end), 100 * std::sqrt(2.0), 0.002);
}

TEST(SimulationTest, AJobThatCanNeverRunDoesNotHoldTheSimulationUp) {
  TraceJob job = Job("large", 0, {3}, 100);
  const SimulationResult result = Replay(Slots(2), {job, Job("small", 5, {1}, 100)});
  EXPECT_EQ(result.jobs[0].start, absl::InfiniteFuture());
  EXPECT_EQ(result.jobs[0].wait_reason, scheduler::kGangExceedsCluster);
  EXPECT_EQ(Seconds(result.jobs[1].start), 5);
  EXPECT_EQ(Seconds(result.end), 105);
}

TEST(SimulationTest, FairnessIsJainsIndexOfSlotsByWeightWhileQueuesWait) {
  ClusterSpec cluster = Slots(4);
  cluster.queues["a"].weight = 1;
  cluster.queues["b"].weight = 1;
  // From 0 to 100, a holds three slots and b one, and both wait: (3 + 1)^2 / (2 (9 + 1)) = 0.8. Then both hold two.
  std::vector<TraceJob> trace = {Job("a1", 0, {3}, 100), Job("b1", 0, {1}, 100), Job("a2", 0, {2}, 50),
                                 Job("b2", 0, {2}, 50)};
  for (TraceJob& job : trace) job.queue = job.id.value().substr(0, 1);
  const SimulationResult result = Replay(cluster, trace);
  EXPECT_DOUBLE_EQ(result.fairness, 0.8);
  EXPECT_DOUBLE_EQ(result.contended_seconds, 100);
}

TEST(SimulationTest, TheSameTraceGivesTheSameResult) {
  GeneratorOptions options;
  options.workers = 16;
  options.duration = absl::Hours(7 * 24);
  options.load = 1.2;
  options.high_priority = 0.2;
  options.low_priority = 0.3;
  options.elastic = 0.1;
  const GeneratedTrace trace = GenerateTrace(options);
  const auto run = [&] {
    const std::unique_ptr<Policy> policy = *MakePolicy("longspan", {});
    nlohmann::ordered_json json = ReportJson(MakeReport(trace.jobs, Simulate(trace.cluster, trace.jobs, {}, *policy)));
    EXPECT_EQ(json.erase("timing"), 1u);
    return json.dump(1);
  };
  const std::string text = run();
  EXPECT_EQ(text, run());
  const auto json = nlohmann::json::parse(text);
  EXPECT_GT(json.at("preemptions").get<int>(), 0) << "or this proves little";
  EXPECT_GT(json.at("resizes").get<int>(), 0);
  EXPECT_EQ(json.at("wait_seconds").at("never_started").get<int>(), 0);
}

}  // namespace
}  // namespace longspan::simulator
