// What a pass costs at the size it is meant for: 1,000 workers, 8,000 slots, 10,000 jobs and more that wait, of several
// priorities, sizes and requirements. Counts are the same on every machine, and a change that raises them is to be a
// decision; processor time has room for slower machines.
#include <gtest/gtest.h>

#include "server/simulator/generator.h"
#include "server/simulator/report.h"
#include "server/simulator/simulation.h"

namespace longspan::simulator {
namespace {

// As recorded; README.md of the scheduler has the times.
constexpr int64_t kPlacementsMax = 2212;
constexpr int64_t kWorkersMax = 2'212'000;
constexpr int64_t kSlotsMax = 681'570;
constexpr int64_t kClusterCopiesMax = 21;
constexpr double kCpuSecondsP50 = 0.027;
constexpr int64_t kPasses = 30;

constexpr bool kTimesMeanSomething = !LONGSPAN_IS_SANITIZED;

TEST(PassCostTest, AThousandWorkersAndTenThousandWaitingJobs) {
  GeneratorOptions generator;
  generator.workers = 1000;
  generator.racks = 40;
  generator.duration = absl::Hours(24);
  generator.backlog = 14'000;
  generator.high_priority = 0.1;
  generator.low_priority = 0.2;
  generator.elastic = 0.2;
  generator.required_gpu = 0.2;
  const GeneratedTrace trace = GenerateTrace(generator);
  SimulationOptions options;
  options.min_run_time = absl::ZeroDuration();  // so that gangs are preempted and shrink from the beginning
  options.passes_max = kPasses;
  const std::unique_ptr<Policy> policy = *MakePolicy("longspan", {});
  const Report report = MakeReport(trace.jobs, Simulate(trace.cluster, trace.jobs, options, *policy));
  EXPECT_GE(report.passes.waiting_max, 10'000);
  EXPECT_GT(report.preemptions + report.resizes, 0) << "or it is not the mix that is meant";
  EXPECT_LE(report.work_max.placements, kPlacementsMax);
  EXPECT_LE(report.work_max.workers, kWorkersMax);
  EXPECT_LE(report.work_max.slots, kSlotsMax);
  EXPECT_LE(report.work_max.cluster_copies, kClusterCopiesMax);
  RecordProperty("cpu_microseconds_p50", static_cast<int>(1e6 * report.passes.cpu_p50));
  if (kTimesMeanSomething) {
    EXPECT_LE(report.passes.cpu_p50, 3 * kCpuSecondsP50);
  }
}

}  // namespace
}  // namespace longspan::simulator
