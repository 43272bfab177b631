#include "server/simulator/generator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>

namespace longspan::simulator {
namespace {

std::vector<TraceJob> Many() {
  GeneratorOptions options;
  options.workers = 1000;
  options.duration = absl::Hours(28 * 24);
  return GenerateTrace(options).jobs;
}

double MedianMinutes(const std::vector<TraceJob>& jobs, int64_t least, int64_t most) {
  std::vector<double> minutes;
  for (const TraceJob& job : jobs) {
    if (job.LargestSize() >= least && job.LargestSize() <= most) minutes.push_back(absl::ToDoubleMinutes(job.run_time));
  }
  std::nth_element(minutes.begin(), minutes.begin() + minutes.size() / 2, minutes.end());
  return minutes[minutes.size() / 2];
}

double Share(const std::vector<TraceJob>& jobs, const std::function<bool(const TraceJob&)>& is) {
  return static_cast<double>(std::count_if(jobs.begin(), jobs.end(), is)) / static_cast<double>(jobs.size());
}

TEST(GeneratorTest, HasThePublishedShape) {
  const std::vector<TraceJob> jobs = Many();
  ASSERT_GT(jobs.size(), 30'000u);
  EXPECT_NEAR(Share(jobs, [](const TraceJob& job) { return job.LargestSize() == 1; }), 0.6825, 0.01);
  EXPECT_NEAR(Share(jobs, [](const TraceJob& job) { return job.LargestSize() == 8; }), 0.1557, 0.01);
  EXPECT_NEAR(Share(jobs, [](const TraceJob& job) { return job.LargestSize() > 8; }), 0.0507, 0.005);
  EXPECT_NEAR(MedianMinutes(jobs, 1, 1), 19.2, 1.5);
  EXPECT_NEAR(MedianMinutes(jobs, 2, 4), 29, 10);
  EXPECT_NEAR(MedianMinutes(jobs, 5, 8), 206, 30);
  EXPECT_NEAR(MedianMinutes(jobs, 9, 80), 136, 35);
  EXPECT_NEAR(Share(jobs, [](const TraceJob& job) { return job.planned_run_time == job.run_time; }), 0.624, 0.01);
}

TEST(GeneratorTest, AsksForTheLoadAndNeverForMoreThanTheLimit) {
  const std::vector<TraceJob> jobs = Many();
  double asked = 0;
  std::set<absl::Duration> limits;
  for (const TraceJob& job : jobs) {
    asked += absl::ToDoubleSeconds(job.run_time) * static_cast<double>(job.LargestSize());
    EXPECT_LE(job.run_time, job.planned_run_time);
    EXPECT_LE(job.planned_run_time, job.limit);
    EXPECT_LT(job.submit, absl::Hours(28 * 24));
    limits.insert(job.limit);
  }
  EXPECT_NEAR(asked / (8000.0 * 28 * 86'400), 0.9, 0.005);
  EXPECT_LE(limits.size(), 17u) << "a few round values";
  EXPECT_NEAR(Share(jobs, [](const TraceJob& job) { return job.limit < absl::InfiniteDuration(); }), 0.5, 0.01);
  const double by_night = Share(jobs, [](const TraceJob& job) {
    const absl::Duration hour = job.submit % absl::Hours(24);
    return hour < absl::Hours(6) || hour >= absl::Hours(18);
  });
  EXPECT_NEAR(by_night, 0.5 - 0.5 / 3.14159, 0.01);
}

TEST(GeneratorTest, ASeedIsATrace) {
  GeneratorOptions options;
  options.workers = 16;
  options.duration = absl::Hours(24);
  const auto text = [&] {
    std::string lines;
    for (const TraceJob& job : GenerateTrace(options).jobs) lines += TraceLine(job) + "\n";
    return lines;
  };
  const std::string first = text();
  EXPECT_EQ(first, text());
  options.seed = 2;
  EXPECT_NE(first, text());
}

TEST(GeneratorTest, MixesWhatIsAskedFor) {
  GeneratorOptions options;
  options.high_priority = 0.1;
  options.low_priority = 0.2;
  options.elastic = 0.5;
  options.required_gpu = 0.3;
  options.backlog = 1000;
  const GeneratedTrace trace = GenerateTrace(options);
  EXPECT_NEAR(Share(trace.jobs, [](const TraceJob& job) { return job.priority == 80; }), 0.1, 0.02);
  EXPECT_NEAR(Share(trace.jobs, [](const TraceJob& job) { return job.priority == 20; }), 0.2, 0.02);
  EXPECT_NEAR(Share(trace.jobs, [](const TraceJob& job) { return !job.requirements.labels.empty(); }), 0.3, 0.03);
  EXPECT_NEAR(Share(trace.jobs, [](const TraceJob& job) { return job.sizes.size() > 1; }), 0.16, 0.02);
  EXPECT_GE(std::count_if(trace.jobs.begin(), trace.jobs.end(),
                          [](const TraceJob& job) { return job.submit == absl::ZeroDuration(); }),
            1000);
  EXPECT_EQ(trace.cluster.SlotCount(), 1024);
}

}  // namespace
}  // namespace longspan::simulator
