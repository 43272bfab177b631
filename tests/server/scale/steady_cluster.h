// A core with workers that are full of training gangs, on virtual time. Not thread-safe.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "proto/support/check.h"
#include "server/core/core.h"
#include "tests/server/fakes/fake_worker.h"

namespace longspan::testing {

class SteadyCluster {
 public:
  // What becomes of each step's transaction.
  using Commit = std::function<void(const core::Transaction&)>;

  SteadyCluster(core::CoreOptions options, int64_t workers, int64_t slots, Commit commit)
      : core_(std::move(options)), commit_(std::move(commit)) {
    Step(core::Restarted{});
    for (int64_t i = 0; i < workers; ++i) workers_.push_back(std::make_unique<FakeWorker>(NameOf(i), slots));
    ReportAll();
    Tick();
  }

  static WorkerId NameOf(int64_t worker) { return WorkerId(fmt::format("worker-{:04}", worker)); }

  // As long a job file as real ones have, of that many ranks; it trains for `steps` steps.
  core::JobSubmitted Job(int64_t ranks, int64_t steps) {
    core::JobSubmitted submitted;
    core::Job& job = submitted.job;
    job.id = JobId(fmt::format("job-{:06}", submitted_));
    job.name = fmt::format("j-{}", submitted_++);
    job.request_id = RequestId(job.id);
    job.queue = "default";
    job.spec_json = fmt::format(R"({{"steps": {}, "padding": "{}"}})", steps, std::string(3000, 'x'));
    job.folder = "/storage/jobs/" + job.id.value();
    job.gang_sizes = {ranks};
    job.submit_time = now_;
    steps_[job.id] = steps;
    while (steps_.begin()->first != job.id && !core_.FindRequest(RequestId(steps_.begin()->first))) {
      steps_.erase(steps_.begin());  // the core has forgotten it
    }
    return submitted;
  }

  core::Effects Step(const core::Event& event) {
    core::Effects effects = core_.Step(event, now_);
    if (!effects.transaction.empty()) {
      ++changes_;
      commit_(effects.transaction);
    }
    return effects;
  }
  // As long as a pass is due.
  void Tick() {
    while (Step(core::Tick{}).tick_soon) {
    }
  }
  void Advance(absl::Duration by) { now_ += by; }

  // The worker's report and what it does about the answer; of prepare it has done all, of training nothing.
  void Report(FakeWorker& worker) {
    const core::Effects effects = Step(worker.MakeReport(now_));
    const auto& reply = std::get<core::ReportReply>(effects.reply);
    worker.Apply(reply, core_.Desired(worker.id()), now_);
    for (auto& [key, rank] : worker.ranks()) {
      if (rank.report.exit) continue;
      if (rank.report.state == core::RankState::kStarting) rank.report.state = core::RankState::kRunning;
      if (rank.desired.command == "prepare") worker.Exit(key, {}, now_);
    }
  }
  void ReportAll() {
    for (const auto& worker : workers_) Report(*worker);
  }
  // Until everything that fits runs, every waiting job is prepared, and two rounds of reports change nothing: what a
  // worker is told in one it reports in the next.
  void Settle() {
    constexpr int kRoundsMax = 100;
    int quiet = 0;
    for (int round = 0; round < kRoundsMax; ++round) {
      const int64_t before = changes_;
      ReportAll();
      Tick();
      quiet = changes_ == before ? quiet + 1 : 0;
      if (quiet == 2) return;
    }
    CHECK(false) << "the cluster does not come to rest";
  }

  // Each training rank makes a step; rank 0 tells, and all end with their last one.
  void Train(FakeWorker& worker) {
    std::vector<FakeWorker::Key> done;
    for (auto& [key, rank] : worker.ranks()) {
      if (rank.report.exit || rank.desired.command != "run") continue;
      const int64_t step = ++rank.report.reached_step;
      if (std::get<2>(key) == 0) worker.AddSample(key, core::Phase::kTrain, step, now_);
      if (step >= steps_.at(std::get<0>(key))) done.push_back(key);
    }
    for (const FakeWorker::Key& key : done) worker.Exit(key, {}, now_);
  }

  core::Core& core() { return core_; }
  const std::vector<std::unique_ptr<FakeWorker>>& workers() const { return workers_; }
  absl::Time now() const { return now_; }

 private:
  static std::string RequestId(const JobId& job_id) { return "r-" + job_id.value(); }

  core::Core core_;
  const Commit commit_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::map<JobId, int64_t> steps_;
  int64_t submitted_ = 0;
  int64_t changes_ = 0;  // steps that stored something
};

}  // namespace longspan::testing
