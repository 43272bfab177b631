// What a scrape of a worker shows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <cmath>
#include <limits>

#include "tests/test_paths.h"
#include "worker/daemon/gpus.h"
#include "worker/daemon/metrics_http.h"
#include "worker/daemon/worker_metrics.h"

namespace longspan::worker {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const absl::Time kWall = absl::FromUnixSeconds(1'700'000'000);
const RankKey kRank0{"job-1", 1, 0};

lines::Progress Train(int64_t step, std::map<std::string, double> values) {
  return {"train", step, 100, std::move(values)};
}

TEST(WorkerMetricsTest, ShowsTheTrainingOfRankZero) {
  WorkerMetrics metrics;
  metrics.OnLine(kRank0, true,
                 Train(10, {{"loss", 2.5},
                            {"grad_norm", 0.5},
                            {"learning_rate", 0.001},
                            {"tokens_total", 640},
                            {"seconds_forward", 0.2},
                            {"memory_peak_bytes", 4096},
                            {"nonfinite_steps", 0}}),
                 kWall);
  metrics.OnLine(kRank0, true, lines::Checkpoint{"step-00000010.attempt-1", 10, "ab", 77, 0.5}, kWall);
  metrics.OnLine(kRank0, true, lines::Evaluation{"extended", 1024, "windows", 4.5, 1.5, 1000, 10}, kWall);
  metrics.OnLine({"job-1", 1, 1}, true, Train(99, {{"loss", 9.0}}), kWall);
  const std::string text = metrics.Scrape();
  EXPECT_THAT(text, HasSubstr("longspan_train_loss{job_id=\"job-1\"} 2.5\n"));
  EXPECT_THAT(text, HasSubstr("longspan_train_step{job_id=\"job-1\"} 10\n"));
  EXPECT_THAT(text, HasSubstr("longspan_train_progress_ratio{job_id=\"job-1\"} 0.1\n"));
  EXPECT_THAT(text, HasSubstr("longspan_train_tokens_total{job_id=\"job-1\"} 640\n"));
  EXPECT_THAT(text, HasSubstr("longspan_train_nonfinite_steps_total{job_id=\"job-1\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("longspan_train_step_phase_seconds_count{job_id=\"job-1\",phase=\"forward\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("longspan_train_memory_bytes{job_id=\"job-1\",kind=\"peak\"} 4096\n"));
  EXPECT_THAT(text, HasSubstr("longspan_train_last_progress_timestamp_seconds{job_id=\"job-1\"} 1700000000\n"));
  EXPECT_THAT(text, HasSubstr("longspan_checkpoint_bytes{job_id=\"job-1\"} 77\n"));
  EXPECT_THAT(text, HasSubstr("longspan_eval_perplexity{job_id=\"job-1\",length=\"1024\",model=\"extended\"} 4.5\n"));
}

TEST(WorkerMetricsTest, ShowsTheGpusAndNaNForWhatOneCannotTell) {
  const auto gpus = Gpus::Open(longspan::testing::BinDir() / "libfake_nvml.so");
  ASSERT_TRUE(gpus.ok()) << gpus.status();
  WorkerMetrics metrics;
  EXPECT_THAT(metrics.Scrape(), Not(HasSubstr("longspan_gpu_")));
  metrics.WatchGpus(gpus->get());
  const std::string text = metrics.Scrape();
  const std::string second = "{gpu=\"1\",name=\"NVIDIA H200\",uuid=\"GPU-10000000-1111-2222-3333-444444444444\"} ";
  EXPECT_THAT(text, HasSubstr("longspan_gpu_utilization_ratio" + second + "0.03"));
  EXPECT_THAT(text, HasSubstr("longspan_gpu_memory_used_bytes" + second + "10754820097\n"));
  EXPECT_THAT(text, HasSubstr("longspan_gpu_memory_total_bytes" + second + "150754820096\n"));
  EXPECT_THAT(text, HasSubstr("longspan_gpu_temperature_celsius" + second + "61\n"));
  EXPECT_THAT(text, HasSubstr("longspan_gpu_power_watts" + second + "Nan\n"));
}

TEST(WorkerMetricsTest, CountsCollectivesByKind) {
  WorkerMetrics metrics;
  // An attempt that resumed: the trainer's totals of these are of the attempt all the same.
  for (const double step : {1.0, 2.0}) {
    metrics.OnLine(kRank0, false,
                   Train(static_cast<int64_t>(step), {{"collective_all_reduce_bytes_total", 1000 * step},
                                                      {"collective_all_reduce_seconds_total", 0.5 * step},
                                                      {"collective_all_reduce_wait_seconds_total", 0.25 * step},
                                                      {"collective_exchange_bytes_total", 64 * step},
                                                      {"collective_bytes_total", 7},
                                                      {"collective_exchange_mood_total", 7}}),
                   kWall);
  }
  const std::string text = metrics.Scrape();
  const std::string labels = "{collective=\"all_reduce\",job_id=\"job-1\"} ";
  EXPECT_THAT(text, HasSubstr("longspan_collective_bytes_total" + labels + "2000\n"));
  EXPECT_THAT(text, HasSubstr("longspan_collective_seconds_total" + labels + "1\n"));
  EXPECT_THAT(text, HasSubstr("longspan_collective_wait_seconds_total" + labels + "0.5\n"));
  EXPECT_THAT(text, HasSubstr("longspan_collective_bytes_total{collective=\"exchange\",job_id=\"job-1\"} 128\n"));
  EXPECT_THAT(text, Not(HasSubstr("} 7\n")));
}

TEST(WorkerMetricsTest, CountersStartAtZeroInEachAttempt) {
  WorkerMetrics metrics;
  metrics.OnLine(kRank0, true, Train(1, {{"tokens_total", 100}}), kWall);
  metrics.OnLine(kRank0, true, Train(2, {{"tokens_total", 200}}), kWall);
  EXPECT_THAT(metrics.Scrape(), HasSubstr("longspan_train_tokens_total{job_id=\"job-1\"} 200\n"));
  // The second attempt resumed at 150; a line of the first one that comes late changes nothing.
  const RankKey second{"job-1", 2, 0};
  metrics.OnLine(second, false, Train(2, {{"tokens_total", 150}}), kWall);
  EXPECT_THAT(metrics.Scrape(), HasSubstr("longspan_train_tokens_total{job_id=\"job-1\"} 0\n"));
  metrics.OnLine(kRank0, true, Train(3, {{"tokens_total", 300}}), kWall);
  metrics.OnLine(second, false, Train(3, {{"tokens_total", 250}}), kWall);
  EXPECT_THAT(metrics.Scrape(), HasSubstr("longspan_train_tokens_total{job_id=\"job-1\"} 100\n"));
}

TEST(WorkerMetricsTest, NonFiniteNumbersAreShownAndDoNotPoisonCounters) {
  WorkerMetrics metrics;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  metrics.OnLine(kRank0, true, Train(1, {{"loss", nan}, {"tokens_total", nan}, {"seconds_data", nan}}), kWall);
  metrics.OnLine(kRank0, true, Train(2, {{"tokens_total", 5}, {"grad_norm", INFINITY}}), kWall);
  const std::string text = metrics.Scrape();
  EXPECT_THAT(text, HasSubstr("longspan_train_loss{job_id=\"job-1\"} Nan\n"));
  EXPECT_THAT(text, HasSubstr("longspan_train_grad_norm{job_id=\"job-1\"} +Inf\n"));
  EXPECT_THAT(text, HasSubstr("longspan_train_tokens_total{job_id=\"job-1\"} 5\n"));
}

TEST(WorkerMetricsTest, SeriesOfAJobGoAwaySomeMinutesAfterItsEnd) {
  WorkerMetrics metrics(absl::Minutes(5));
  metrics.OnLine(kRank0, true, Train(1, {{"loss", 1}}), kWall);
  metrics.OnRankEnded(kRank0, kWall);
  metrics.Sweep(kWall + absl::Minutes(4));
  EXPECT_THAT(metrics.Scrape(), HasSubstr("job-1"));
  metrics.Sweep(kWall + absl::Minutes(5));
  EXPECT_THAT(metrics.Scrape(), Not(HasSubstr("job-1")));
}

TEST(WorkerMetricsTest, InventedNamesDoNotFillTheMemory) {
  WorkerMetrics metrics;
  for (int i = 0; i < 1000; ++i) {
    metrics.OnLine(kRank0, true, Train(i, {{"memory_" + std::to_string(i) + "_bytes", 1}}), kWall);
  }
  const std::string text = metrics.Scrape();
  EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 300);
}

TEST(WorkerMetricsTest, ShowsTheDaemonItself) {
  WorkerMetrics metrics;
  metrics.SetRanks({{v1::RankReport::STATE_RUNNING, 2}});
  metrics.CountMalformedLines(3);
  metrics.SetLeaseRemaining(absl::Seconds(12));
  metrics.ObserveSynchronize(absl::Seconds(2), true);
  metrics.ObserveSynchronize(absl::Seconds(2), false);
  const std::string text = metrics.Scrape();
  EXPECT_THAT(text, HasSubstr("longspan_worker_ranks{state=\"running\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("longspan_worker_ranks{state=\"exited\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("longspan_worker_malformed_lines_total 3\n"));
  EXPECT_THAT(text, HasSubstr("longspan_worker_lease_remaining_seconds 12\n"));
  EXPECT_THAT(text, HasSubstr("longspan_worker_synchronize_seconds_count 1\n"));
  EXPECT_THAT(text, HasSubstr("longspan_worker_synchronize_failures_total 1\n"));
}

TEST(MetricsHttpTest, AnswersScrapesAndRefusesAPortInUse) {
  auto http = MetricsHttp::Start({"127.0.0.1", 0, [] { return std::string("longspan_x 1\n"); }});
  ASSERT_TRUE(http.ok()) << http.status().ToString();
  httplib::Client client("127.0.0.1", (*http)->port());
  const auto metrics = client.Get("/metrics");
  ASSERT_TRUE(metrics);
  EXPECT_EQ(metrics->body, "longspan_x 1\n");
  EXPECT_EQ(metrics->get_header_value("Content-Type"), "text/plain; version=0.0.4; charset=utf-8");
  const auto health = client.Get("/healthz");
  ASSERT_TRUE(health);
  EXPECT_EQ(health->status, 200);
  const auto missing = client.Get("/other");
  ASSERT_TRUE(missing);
  EXPECT_EQ(missing->status, 404);
  const auto second = MetricsHttp::Start({"127.0.0.1", (*http)->port(), [] { return std::string(); }});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.status().ToString(), HasSubstr("is the port in use?"));
}

}  // namespace
}  // namespace longspan::worker
