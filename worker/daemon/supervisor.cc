#include "worker/daemon/supervisor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <optional>
#include <utility>

#include "proto/support/first_bytes.h"

namespace longspan::worker {
namespace {

template <class... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <class... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

std::optional<v1::Phase> PhaseOf(std::string_view name) {
  if (name == "prepare") return v1::PHASE_PREPARE;
  if (name == "train") return v1::PHASE_TRAIN;
  if (name == "evaluate") return v1::PHASE_EVALUATE;
  if (name == "export") return v1::PHASE_EXPORT;
  return std::nullopt;
}

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

void ToProto(absl::Duration duration, google::protobuf::Duration* message) {
  const int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &duration);
  message->set_seconds(seconds);
  message->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

void ToProto(absl::Time time, google::protobuf::Timestamp* message) {
  const int64_t nanos = absl::ToUnixNanos(time);
  message->set_seconds(nanos / 1'000'000'000);
  message->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
}

// Drops every second sample of the older half: a long outage keeps the whole curve, coarser towards its beginning.
void Thin(google::protobuf::RepeatedPtrField<v1::ProgressSample>* samples) {
  const int half = samples->size() / 2;
  int kept = 0;
  for (int i = 0; i < samples->size(); ++i) {
    if (i < half && i % 2 == 1) continue;
    if (i != kept) samples->SwapElements(i, kept);
    ++kept;
  }
  samples->DeleteSubrange(kept, samples->size() - kept);
}

Note Info(std::string text) { return Note{false, std::move(text)}; }
Note Warn(std::string text) { return Note{true, std::move(text)}; }

}  // namespace

// ---- what the server wants ----

Effects Supervisor::OnAnswer(const v1::SynchronizeResponse& answer, absl::Time sent, absl::Time now) {
  Effects effects;
  const absl::Time lease_before = lease_until_;
  if (answer.has_lease()) lease_until_ = std::max(lease_until_, sent + FromProto(answer.lease()));
  for (const auto& acknowledgement : answer.acknowledged()) Acknowledge(acknowledgement, now, &effects);
  if (!answer.desired_unchanged()) {
    fingerprint_ = answer.desired_fingerprint();
    WantRanks(answer, now, &effects);
  } else if (answer.desired_fingerprint() != fingerprint_) {
    ReportNow(now);  // it compares with what this worker had when it reported
  }
  if (lease_until_ <= now) {
    ExpireLease(now, &effects);
    return effects;
  }
  for (auto rank = ranks_.begin(); rank != ranks_.end(); ++rank) {
    const bool lives_on = rank->second.process == Process::kAlive && rank->second.words.killed_because.empty();
    if (lives_on && lease_until_ > lease_before) {
      effects.push_back(SendLine{rank->first, LeaseLine(now)});
    }
    if (rank->second.wanted) ObeyDesired(rank, now, &effects);
  }
  SpawnWhatCan(now, &effects);
  return effects;
}

void Supervisor::Acknowledge(const v1::RankAcknowledgement& acknowledgement, absl::Time now, Effects* effects) {
  const auto found = ranks_.find(KeyOf(acknowledgement));
  if (found == ranks_.end()) return;
  auto& [key, rank] = *found;
  if (acknowledgement.fenced()) {
    RememberEnded(key).whole = true;
    rank.superseded = true;
    if (rank.process != Process::kAlive) {
      Forget(found, effects);
    } else {
      Terminate(key, rank, "the server refused its attempt", now, effects);
    }
    return;
  }
  auto* samples = rank.report.mutable_samples();
  int done = 0;
  while (done < samples->size() && samples->Get(done).sequence() <= acknowledgement.sample_sequence()) ++done;
  samples->DeleteSubrange(0, done);
  auto* checkpoints = rank.report.mutable_checkpoints();
  for (const std::string& name : acknowledgement.checkpoints()) {
    for (int i = checkpoints->size() - 1; i >= 0; --i) {
      if (checkpoints->Get(i).name() == name) checkpoints->DeleteSubrange(i, 1);
    }
  }
  rank.evaluations_acknowledged =
      std::max(rank.evaluations_acknowledged, static_cast<size_t>(std::max<int64_t>(0, acknowledgement.evaluations())));
  rank.artifacts_acknowledged =
      std::max(rank.artifacts_acknowledged, static_cast<size_t>(std::max<int64_t>(0, acknowledgement.artifacts())));
  rank.warnings_acknowledged =
      std::max(rank.warnings_acknowledged, static_cast<size_t>(std::max<int64_t>(0, acknowledgement.warnings())));
  if (acknowledgement.exit() && rank.process == Process::kEnded) Forget(found, effects);
}

void Supervisor::WantRanks(const v1::SynchronizeResponse& answer, absl::Time now, Effects* effects) {
  for (auto& [key, rank] : ranks_) rank.wanted = false;
  for (const auto& desired : answer.desired_ranks()) WantRank(desired, effects);
  EndOlderAttempts(now, effects);
  DropUnwanted(now, effects);
}

void Supervisor::WantRank(const v1::DesiredRank& desired, Effects* effects) {
  const RankKey key = KeyOf(desired);
  const int64_t newest = NewestAttempt(key.job_id);
  if (key.attempt < newest) {
    effects->push_back(Warn(fmt::format("ignored a wish for {}: attempt {} is known", ToString(key), newest)));
    return;
  }
  const auto found = ranks_.find(key);
  if (found != ranks_.end()) {
    if (!found->second.superseded) {
      Rank& rank = found->second;
      const int64_t slot = rank.desired.slot();
      rank.wanted = true;
      rank.desired = desired;
      // A process stays in the slot in which it was started.
      if (rank.process != Process::kWaiting) rank.desired.set_slot(slot);
    }
    return;
  }
  if (leaving_ || EndedBefore(key)) return;
  Rank rank;
  rank.desired = desired;
  rank.report.set_job_id(key.job_id);
  rank.report.set_attempt(key.attempt);
  rank.report.set_rank(key.rank);
  rank.report.set_state(v1::RankReport::STATE_STARTING);
  ranks_.emplace(key, std::move(rank));
}

void Supervisor::EndOlderAttempts(absl::Time now, Effects* effects) {
  for (auto it = ranks_.begin(); it != ranks_.end();) {
    auto& [key, rank] = *it;
    const int64_t newest = NewestAttempt(key.job_id);
    if (key.attempt >= newest) {
      ++it;
      continue;
    }
    rank.superseded = true;
    rank.wanted = false;
    if (rank.process != Process::kAlive) {
      it = Forget(it, effects);
      continue;
    }
    Terminate(key, rank, fmt::format("attempt {} takes its place", newest), now, effects);
    ++it;
  }
}

void Supervisor::DropUnwanted(absl::Time now, Effects* effects) {
  for (auto it = ranks_.begin(); it != ranks_.end();) {
    auto& [key, rank] = *it;
    if (!rank.wanted && rank.process == Process::kWaiting) {
      it = Forget(it, effects);
      continue;
    }
    if (!rank.wanted && rank.process == Process::kAlive) {
      Terminate(key, rank, "the server no longer wants it", now, effects);
    }
    ++it;
  }
}

void Supervisor::ObeyDesired(Ranks::iterator it, absl::Time now, Effects* effects) {
  auto& [key, rank] = *it;
  const bool stop = rank.desired.action() == v1::DesiredRank::ACTION_STOP;
  if (stop && rank.process == Process::kWaiting) {
    v1::RankExit exit;
    exit.set_exit_code(lines::kExitStopped);
    exit.set_stopped(true);
    exit.set_message("stopped before it was started");
    End(rank, std::move(exit), now);
  }
  if (rank.process != Process::kAlive) return;
  if (key.rank > 0 && !rank.rendezvous_sent && !rank.desired.store_address().empty()) {
    effects->push_back(SendLine{key, lines::Rendezvous{rank.desired.store_address()}});
    rank.rendezvous_sent = true;
  }
  const std::set<std::string> recorded(rank.desired.recorded_checkpoints().begin(),
                                       rank.desired.recorded_checkpoints().end());
  for (const std::string& name : recorded) {
    if (!rank.recorded.contains(name)) effects->push_back(SendLine{key, lines::CheckpointRecorded{name}});
  }
  rank.recorded = recorded;
  if (stop) {
    const absl::Duration grace =
        rank.desired.has_stop_grace() ? FromProto(rank.desired.stop_grace()) : options_.stop_grace_default;
    RequestStop(key, rank, "the server asked for it", grace, now, effects);
  }
}

lines::Lease Supervisor::LeaseLine(absl::Time now) const {
  return {absl::ToDoubleSeconds(lease_until_ - now), absl::ToDoubleSeconds(lease_until_ - absl::UnixEpoch())};
}

// ---- starting and ending processes ----

bool Supervisor::MaySpawn(const RankKey& key, const Rank& rank) const {
  if (rank.process != Process::kWaiting || rank.desired.action() != v1::DesiredRank::ACTION_RUN) return false;
  return std::none_of(ranks_.begin(), ranks_.end(), [&](const auto& other) {
    if (other.second.process != Process::kAlive) return false;
    const bool same_slot = rank.desired.slot() >= 0 && other.second.desired.slot() == rank.desired.slot();
    const bool older_attempt = other.first.job_id == key.job_id && other.first.attempt != key.attempt;
    return same_slot || older_attempt;
  });
}

void Supervisor::SpawnWhatCan(absl::Time now, Effects* effects) {
  if (leaving_ || lease_until_ <= now) return;
  for (auto it = ranks_.begin(); it != ranks_.end(); ++it) {
    auto& [key, rank] = *it;
    if (!MaySpawn(key, rank)) continue;
    rank.process = Process::kAlive;
    effects->push_back(SpawnRank{key, rank.desired});
    effects->push_back(SendLine{key, LeaseLine(now)});
    ObeyDesired(it, now, effects);
    ReportNow(now);
  }
}

void Supervisor::RequestStop(const RankKey& key, Rank& rank, std::string_view reason, absl::Duration grace,
                             absl::Time now, Effects* effects) {
  if (rank.stop_sent) return;
  rank.stop_sent = true;
  rank.stop_deadline = now + grace;
  rank.report.set_state(v1::RankReport::STATE_STOPPING);
  effects->push_back(SendLine{key, lines::Stop{true, std::string(reason)}});
  effects->push_back(
      Info(fmt::format("asked {} to stop within {}: {}", ToString(key), absl::FormatDuration(grace), reason)));
  ReportNow(now);
}

void Supervisor::Terminate(const RankKey& key, Rank& rank, std::string_view reason, absl::Time now, Effects* effects) {
  if (!rank.words.killed_because.empty()) return;
  rank.words.killed_because = std::string(reason);
  rank.stop_deadline = absl::InfiniteFuture();
  rank.kill_deadline = now + options_.kill_grace;
  rank.report.set_state(v1::RankReport::STATE_STOPPING);
  effects->push_back(Warn(fmt::format("kill {}: {} (SIGTERM, {} grace)", ToString(key), reason,
                                      absl::FormatDuration(options_.kill_grace))));
  effects->push_back(SignalRank{key, SIGTERM});
}

void Supervisor::ExpireLease(absl::Time now, Effects* effects) {
  for (auto it = ranks_.begin(); it != ranks_.end();) {
    auto& [key, rank] = *it;
    if (rank.process == Process::kWaiting) {
      it = Forget(it, effects);
      continue;
    }
    if (rank.process == Process::kAlive) Terminate(key, rank, "the lease ran out", now, effects);
    ++it;
  }
}

Effects Supervisor::OnTick(absl::Time now) {
  Effects effects;
  if (lease_until_ <= now) ExpireLease(now, &effects);
  for (auto& [key, rank] : ranks_) {
    if (rank.process != Process::kAlive) continue;
    if (rank.stop_deadline <= now) Terminate(key, rank, "it did not stop in time", now, &effects);
    if (rank.kill_deadline <= now) {
      rank.kill_deadline = absl::InfiniteFuture();
      effects.push_back(Warn(fmt::format("kill {}: still there after the grace (SIGKILL)", ToString(key))));
      effects.push_back(SignalRank{key, SIGKILL});
    }
  }
  return effects;
}

absl::Time Supervisor::Deadline() const {
  absl::Time deadline = absl::InfiniteFuture();
  for (const auto& [key, rank] : ranks_) {
    if (rank.process == Process::kEnded) continue;
    if (rank.words.killed_because.empty()) deadline = std::min(deadline, lease_until_);
    deadline = std::min({deadline, rank.stop_deadline, rank.kill_deadline});
  }
  return deadline;
}

Effects Supervisor::BeginLeaving(absl::Duration grace, absl::Time now) {
  Effects effects;
  leaving_ = true;
  ReportNow(now);
  for (auto it = ranks_.begin(); it != ranks_.end();) {
    auto& [key, rank] = *it;
    if (rank.process == Process::kWaiting) {
      it = Forget(it, &effects);
      continue;
    }
    if (rank.process == Process::kAlive) RequestStop(key, rank, "the worker is shutting down", grace, now, &effects);
    // A stop that is already under way has no more time than this one.
    if (rank.words.killed_because.empty()) rank.stop_deadline = std::min(rank.stop_deadline, now + grace);
    ++it;
  }
  return effects;
}

Effects Supervisor::OnSpawnFailed(const RankKey& key, const std::string& message, absl::Time now) {
  Effects effects;
  const auto found = ranks_.find(key);
  if (found == ranks_.end()) return effects;
  v1::RankExit exit;
  exit.set_exit_code(-1);
  exit.set_failure_class(v1::FAILURE_CLASS_INFRASTRUCTURE);
  exit.set_message(fmt::format("cannot start the trainer: {}", message));
  effects.push_back(Warn(fmt::format("{}: {}", ToString(key), exit.message())));
  End(found->second, std::move(exit), now);
  if (found->second.superseded) Forget(found, &effects);
  SpawnWhatCan(now, &effects);
  return effects;
}

Effects Supervisor::OnExit(const RankKey& key, const ProcessEnd& end, absl::Time now) {
  Effects effects;
  const auto found = ranks_.find(key);
  if (found == ranks_.end()) return effects;
  Rank& rank = found->second;
  v1::RankExit exit = ClassifyExit(end, rank.words);
  const bool failed = exit.failure_class() != v1::FAILURE_CLASS_UNSPECIFIED;
  const std::string how = failed ? fmt::format("failed: {}", exit.message()) : exit.stopped() ? "stopped" : "is done";
  effects.push_back(Note{failed, fmt::format("{} {}", ToString(key), how)});
  End(rank, std::move(exit), now);
  if (rank.superseded) Forget(found, &effects);
  SpawnWhatCan(now, &effects);
  return effects;
}

void Supervisor::End(Rank& rank, v1::RankExit exit, absl::Time now) {
  rank.process = Process::kEnded;
  rank.stop_deadline = absl::InfiniteFuture();
  rank.kill_deadline = absl::InfiniteFuture();
  rank.ended_at = now;
  rank.report.set_state(v1::RankReport::STATE_EXITED);
  *rank.report.mutable_exit() = std::move(exit);
  RememberEnded(KeyOf(rank.report)).ranks.insert(rank.report.rank());
  ReportNow(now);
}

Supervisor::Ranks::iterator Supervisor::Forget(Ranks::iterator rank, Effects* effects) {
  effects->push_back(ForgetRank{rank->first});
  return ranks_.erase(rank);
}

// ---- what is remembered of ended ranks ----

Supervisor::EndedJob& Supervisor::RememberEnded(const RankKey& key) {
  if (!ended_.contains(key.job_id) && ended_.size() >= kEndedJobsMax) {
    ended_.erase(std::min_element(ended_.begin(), ended_.end(),
                                  [](const auto& a, const auto& b) { return a.second.age < b.second.age; }));
  }
  EndedJob& job = ended_[key.job_id];
  if (job.attempt < key.attempt) {
    job = EndedJob{};
    job.attempt = key.attempt;
  }
  job.age = ++ended_clock_;
  return job;
}

bool Supervisor::EndedBefore(const RankKey& key) const {
  const auto found = ended_.find(key.job_id);
  if (found == ended_.end() || found->second.attempt != key.attempt) return false;
  return found->second.whole || found->second.ranks.contains(key.rank);
}

int64_t Supervisor::NewestAttempt(const std::string& job_id) const {
  int64_t newest = 0;
  for (auto it = ranks_.lower_bound(RankKey{job_id}); it != ranks_.end() && it->first.job_id == job_id; ++it) {
    newest = std::max(newest, it->first.attempt);
  }
  const auto found = ended_.find(job_id);
  return found == ended_.end() ? newest : std::max(newest, found->second.attempt);
}

// ---- what trainers say ----

Effects Supervisor::OnLine(const RankKey& key, const lines::FromTrainer& line, absl::Time now, absl::Time wall) {
  Effects effects;
  const auto found = ranks_.find(key);
  if (found != ranks_.end() && found->second.process == Process::kAlive) {
    TakeLine(key, found->second, line, now, wall, &effects);
  }
  return effects;
}

void Supervisor::TakeLine(const RankKey& key, Rank& rank, const lines::FromTrainer& line, absl::Time now,
                          absl::Time wall, Effects* effects) {
  const auto set_phase = [&](std::string_view name) {
    const std::optional<v1::Phase> phase = PhaseOf(name);
    if (!phase.has_value()) return;
    rank.expect_until = absl::InfinitePast();
    if (rank.report.phase() == *phase) return;
    rank.report.set_phase(*phase);
    ReportNow(now);
  };
  std::visit(
      Overloaded{
          [&](const lines::Hello& hello) {
            if (hello.protocol != lines::kProtocolVersion) {
              Terminate(key, rank,
                        fmt::format("it speaks line protocol {}, not {}", hello.protocol, lines::kProtocolVersion), now,
                        effects);
              return;
            }
            if (rank.report.state() == v1::RankReport::STATE_STARTING)
              rank.report.set_state(v1::RankReport::STATE_RUNNING);
            ReportNow(now);
          },
          [&](const lines::Rendezvous& rendezvous) {
            if (key.rank != 0) return;
            rank.report.set_store_address(rendezvous.address);
            ReportNow(now);
          },
          [&](const lines::Phase& phase) { set_phase(phase.phase); },
          [&](const lines::Progress& progress) {
            set_phase(progress.phase);
            if (key.rank == 0) TakeProgress(rank, progress, now, wall);
          },
          [&](const lines::Reached& reached) {
            rank.report.set_reached_step(reached.step);
            ReportProgress(now);
          },
          [&](const lines::Checkpoint& checkpoint) {
            if (rank.report.checkpoints_size() >= kRowsMax || !rank.announced.insert(checkpoint.name).second) return;
            v1::CheckpointRecord* record = rank.report.add_checkpoints();
            record->set_name(checkpoint.name);
            record->set_step(checkpoint.step);
            record->set_attempt(key.attempt);
            record->set_manifest_sha256(checkpoint.manifest_sha256);
            record->set_size_bytes(checkpoint.size_bytes);
            ReportNow(now);
          },
          [&](const lines::Evaluation& evaluation) {
            if (rank.report.evaluations_size() >= kRowsMax) return;
            v1::EvaluationRow* row = rank.report.add_evaluations();
            row->set_model(evaluation.model);
            row->set_length(evaluation.length);
            row->set_protocol(evaluation.protocol);
            row->set_perplexity(evaluation.perplexity);
            row->set_loss(evaluation.loss);
            row->set_tokens(evaluation.tokens);
            row->set_step(evaluation.step);
            row->set_score(evaluation.score);
            row->set_examples(evaluation.examples);
            ReportNow(now);
          },
          [&](const lines::Artifact& artifact) {
            if (rank.report.artifacts_size() >= kRowsMax) return;
            v1::Artifact* message = rank.report.add_artifacts();
            message->set_kind(artifact.kind);
            const bool absolute = artifact.path.starts_with('/');
            message->set_path(absolute ? artifact.path : fmt::format("{}/{}", rank.desired.folder(), artifact.path));
            message->set_excerpt(artifact.excerpt);
            ReportNow(now);
          },
          [&](const lines::Expect& expect) {
            if (!std::isfinite(expect.seconds)) return;
            rank.expect_until = now + absl::Seconds(std::clamp(expect.seconds, 0.0, 1e6));
            ReportNow(now);
          },
          [&](const lines::Warning& warning) {
            effects->push_back(Warn(fmt::format("{} warns: {}", ToString(key), warning.message)));
            const int told = rank.report.warnings_size();
            if (told >= kWarningsMax) return;
            rank.report.add_warnings(told + 1 < kWarningsMax ? FirstBytes(warning.message, kWarningBytesMax)
                                                             : "there are more; they are in the log");
            ReportNow(now);
          },
          [&](const lines::Failed& failed) { rank.words.failed = failed; },
          [&](const lines::Done& done) { rank.words.done = done; },
      },
      line);
}

void Supervisor::TakeProgress(Rank& rank, const lines::Progress& progress, absl::Time now, absl::Time wall) {
  v1::ProgressSample* sample = rank.report.add_samples();
  sample->set_sequence(++rank.samples_numbered);
  sample->set_attempt(rank.report.attempt());
  sample->set_phase(rank.report.phase());
  sample->set_step(progress.step);
  sample->set_steps(progress.steps);
  for (const auto& [name, value] : progress.values) (*sample->mutable_values())[name] = value;
  if (!rank.wall_offset) rank.wall_offset = wall - now;
  ToProto(now + *rank.wall_offset, sample->mutable_time());
  if (static_cast<size_t>(rank.report.samples_size()) > kSamplesMax) Thin(rank.report.mutable_samples());
  ReportProgress(now);
}

// ---- what the server is told ----

void Supervisor::FillReport(absl::Time now, v1::SynchronizeRequest* request) {
  last_report_ = now;
  change_due_ = absl::InfiniteFuture();
  progress_due_ = absl::InfiniteFuture();
  request->set_leaving(leaving_);
  // The last report of all asks for an answer at once: it must not be held.
  if (!leaving_ || !Idle()) request->set_desired_fingerprint(fingerprint_);
  request->set_accepts_unchanged(true);
  for (const auto& [key, rank] : ranks_) {
    if (rank.superseded) continue;
    v1::RankReport* report = request->add_ranks();
    *report = rank.report;
    // The lists go whole until they are stored whole: the server needs no memory of what it has seen.
    if (static_cast<size_t>(report->evaluations_size()) <= rank.evaluations_acknowledged) report->clear_evaluations();
    if (static_cast<size_t>(report->artifacts_size()) <= rank.artifacts_acknowledged) report->clear_artifacts();
    if (static_cast<size_t>(report->warnings_size()) <= rank.warnings_acknowledged) report->clear_warnings();
    if (rank.process == Process::kEnded) {
      report->mutable_exit()->set_age_ms(absl::ToInt64Milliseconds(now - rank.ended_at));
    } else if (rank.expect_until > now) {
      ToProto(rank.expect_until - now, report->mutable_expect_no_progress());
    }
  }
}

std::map<v1::RankReport::State, int64_t> Supervisor::CountRanks() const {
  std::map<v1::RankReport::State, int64_t> counts;
  for (const auto& [key, rank] : ranks_) ++counts[rank.report.state()];
  return counts;
}

}  // namespace longspan::worker
