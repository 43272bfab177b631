#include "tests/server/fakes/fake_worker.h"

#include <fmt/format.h>

#include <set>

#include "proto/support/check.h"

namespace longspan::testing {

core::WorkerReport FakeWorker::MakeReport(absl::Time now) {
  core::WorkerReport report;
  report.worker_id = id_;
  report.incarnation_id = fmt::format("{}-{}", id_, incarnation_);
  report.sequence = ++sequence_;
  report.advertise_address = id_.value();
  for (int64_t i = 0; i < slots_; ++i) report.slots.push_back({i, "cpu", 1 << 30});
  report.desired_fingerprint = fingerprint_;
  report.leaving = leaving;
  for (auto& [key, rank] : ranks_) {
    if (rank.report.exit) rank.report.exit->age = now - rank.exit_time;
    report.ranks.push_back(rank.report);
  }
  return report;
}

std::vector<std::string> FakeWorker::Apply(const core::ReportReply& reply, const core::DesiredRanks& desired,
                                           absl::Time now) {
  std::vector<std::string> log;
  if (!reply.greeting.empty()) {
    fingerprint_ = reply.greeting;
    return log;
  }
  for (const core::RankAcknowledgement& ack : reply.acknowledged) {
    const auto it = ranks_.find({ack.job_id, ack.attempt, ack.rank});
    if (it == ranks_.end()) continue;
    if (ack.fenced) {
      log.push_back(fmt::format("drop {}/{} rank {}: fenced", ack.job_id, ack.attempt, ack.rank));
      ranks_.erase(it);
      continue;
    }
    core::RankReport& report = it->second.report;
    std::erase_if(report.samples, [&](const core::Sample& s) { return s.sequence <= ack.sample_sequence; });
    std::erase_if(report.checkpoints, [&](const core::Checkpoint& c) {
      return std::find(ack.checkpoints.begin(), ack.checkpoints.end(), c.name) != ack.checkpoints.end();
    });
    if (ack.exit) ranks_.erase(it);
  }
  std::set<Key> wanted;
  for (const core::DesiredRank& rank : desired.ranks) {
    const Key key(rank.job_id, rank.attempt, rank.rank);
    wanted.insert(key);
    const std::string name = fmt::format("{}/{} rank {}", rank.job_id, rank.attempt, rank.rank);
    const auto [it, started] = ranks_.try_emplace(key);
    FakeRank& mine = it->second;
    if (started) {
      mine.report.job_id = rank.job_id;
      mine.report.attempt = rank.attempt;
      mine.report.rank = rank.rank;
      mine.report.state = core::RankState::kStarting;
      log.push_back(fmt::format("start {} of {} ({}, slot {}{})", name, rank.world_size, rank.command, rank.slot,
                                rank.resume_from.empty() ? "" : ", from " + rank.resume_from));
    } else {
      if (mine.desired.action != rank.action) log.push_back("stop " + name);
      if (mine.desired.store_address != rank.store_address) log.push_back(name + " gets store " + rank.store_address);
    }
    mine.desired = rank;
    if (rank.action == core::DesiredRank::Action::kStop && mine.report.state != core::RankState::kExited) {
      mine.report.state = core::RankState::kStopping;
    }
  }
  for (auto& [key, rank] : ranks_) {
    if (wanted.contains(key) || rank.report.exit) continue;
    log.push_back(fmt::format("kill {}/{} rank {}", std::get<0>(key), std::get<1>(key), std::get<2>(key)));
    core::RankExit exit;
    exit.exit_code = -1;
    exit.signal = 15;
    exit.message = "killed by its daemon";
    Exit(key, exit, now);
  }
  fingerprint_ = desired.fingerprint;
  return log;
}

void FakeWorker::Restart() {
  ++incarnation_;
  sequence_ = 0;
  fingerprint_.clear();
  ranks_.clear();
}

std::vector<std::string> FakeWorker::KillAll(absl::Time now) { return Apply({}, {}, now); }

void FakeWorker::Exit(const Key& key, core::RankExit exit, absl::Time now) {
  FakeRank& rank = ranks_.at(key);
  CHECK(!rank.report.exit) << "ended twice";
  rank.report.state = core::RankState::kExited;
  rank.report.exit = std::move(exit);
  rank.exit_time = now;
}

void FakeWorker::AddSample(const Key& key, core::Phase phase, int64_t step, absl::Time now) {
  FakeRank& rank = ranks_.at(key);
  rank.report.phase = phase;
  core::Sample sample;
  sample.sequence = ++rank.last_sample;
  sample.phase = phase;
  sample.step = step;
  sample.values = {{"loss", 1.0 / static_cast<double>(step + 1)}};
  sample.time = now;
  rank.report.samples.push_back(std::move(sample));
}

void FakeWorker::AddCheckpoint(const Key& key, const std::string& name, int64_t step) {
  core::Checkpoint checkpoint;
  checkpoint.name = name;
  checkpoint.step = step;
  checkpoint.manifest_sha256 = "hash-of-" + name;
  ranks_.at(key).report.checkpoints.push_back(std::move(checkpoint));
}

}  // namespace longspan::testing
