// What a worker says. A report is a full picture, may be doubled or late, and is answered with what is (or is about to
// be) stored.
#include <fmt/format.h>

#include <algorithm>

#include "proto/support/check.h"
#include "proto/support/first_bytes.h"
#include "server/core/core_state.h"

namespace longspan::core {
namespace {

constexpr size_t kRetiredIncarnationsMax = 8;
constexpr int64_t kSlotsMax = 1024;
constexpr size_t kLogTailBytesMax = 4096;
constexpr size_t kMessageBytesMax = 4096;
constexpr size_t kExcerptBytesMax = 8192;
constexpr size_t kNamedRanksMax = 4;
constexpr absl::Duration kReachedAgeMax = absl::Seconds(2);  // a daemon tells within one what a rank has reached
constexpr int64_t kWarningsMax = 100;                        // of an attempt; a daemon sends fewer

bool SameSlots(const std::vector<Slot>& a, const std::vector<Slot>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Slot& x, const Slot& y) {
    return x.index == y.index && x.device == y.device && x.memory_bytes == y.memory_bytes;
  });
}

// Keeps the end, which says most, and cuts at a character of UTF-8.
std::string LastBytes(const std::string& text, size_t bytes_max) {
  if (text.size() <= bytes_max) return text;
  size_t begin = text.size() - bytes_max;
  while (begin < text.size() && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) ++begin;
  return text.substr(begin);
}

// "rank 1 on b, rank 3 on c and 5 more"
std::string NamesOf(const std::vector<const Rank*>& ranks) {
  std::string names;
  for (size_t i = 0; i < ranks.size() && i < kNamedRanksMax; ++i) {
    names += fmt::format("{}rank {} on {}", i == 0 ? "" : ", ", ranks[i]->rank, ranks[i]->worker_id);
  }
  if (ranks.size() > kNamedRanksMax) names += fmt::format(" and {} more", ranks.size() - kNamedRanksMax);
  return names;
}

RankExit UnknownExit() {
  RankExit exit;
  exit.exit_code = -1;
  exit.message = "its daemon did not say how";
  return exit;
}

// The enums are used as indexes.
bool IsKnown(Phase phase) { return phase >= Phase::kUnspecified && phase <= Phase::kExport; }
bool IsKnown(const RankReport& rank) {
  const FailureClass failure_class = rank.exit ? rank.exit->failure_class : FailureClass::kUnspecified;
  return rank.state >= RankState::kPending && rank.state <= RankState::kExited && IsKnown(rank.phase) &&
         failure_class >= FailureClass::kUnspecified && failure_class <= FailureClass::kInternal &&
         std::all_of(rank.samples.begin(), rank.samples.end(), [](const Sample& s) { return IsKnown(s.phase); });
}

absl::Status CheckReport(const WorkerReport& report) {
  if (report.worker_id.empty()) return absl::InvalidArgumentError("worker_id is empty");
  if (report.incarnation_id.empty()) return absl::InvalidArgumentError("incarnation_id is empty");
  if (report.sequence < 1) return absl::InvalidArgumentError("sequence must be at least 1");
  if (static_cast<int64_t>(report.slots.size()) > kSlotsMax) {
    return absl::InvalidArgumentError(fmt::format("{} slots; at most {} are allowed", report.slots.size(), kSlotsMax));
  }
  std::set<int64_t> indexes;
  for (const Slot& slot : report.slots) {
    if (slot.index < 0 || !indexes.insert(slot.index).second) {
      return absl::InvalidArgumentError(fmt::format("slot index {} is negative or named twice", slot.index));
    }
  }
  for (const RankReport& rank : report.ranks) {
    if (!IsKnown(rank)) {
      return absl::InvalidArgumentError(
          fmt::format("rank {} of {}: unknown state, phase or failure class", rank.rank, rank.job_id));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void Core::State::On(const WorkerReport& report) {
  ReportReply reply;
  if (AcceptReport(report, reply)) {
    WorkerEntry& entry = workers_.at(report.worker_id);
    // Before anything of this report changes what is desired.
    const std::set<RankKey> expected =
        report.desired_fingerprint == Fingerprint(entry) ? RanksToName(entry) : std::set<RankKey>();
    UpdateWorker(entry, report);
    std::set<RankKey> named;
    std::set<JobId> jobs;
    for (const RankReport& rank_report : report.ranks) {
      named.emplace(rank_report.job_id, rank_report.attempt, rank_report.rank);
      jobs.insert(rank_report.job_id);
      reply.acknowledged.push_back(OnRankReport(report, rank_report));
    }
    for (const RankKey& key : expected) {
      if (!named.contains(key)) OnRankMissing(key);
    }
    for (const JobId& job_id : jobs) {
      if (const auto it = jobs_.find(job_id); it != jobs_.end() && TellsProgress(report.worker_id, it->second)) {
        CheckProgress(it->second);
      }
    }
  }
  effects_.reply = std::move(reply);
}

// False when nothing of it may be believed.
bool Core::State::AcceptReport(const WorkerReport& report, ReportReply& reply) {
  reply.status = CheckReport(report);
  if (!reply.status.ok()) return false;
  WorkerEntry& entry = workers_[report.worker_id];
  Worker& worker = entry.worker;
  if (worker.id.empty()) {
    worker.id = report.worker_id;
    worker.incarnation_id = report.incarnation_id;
    Touch(entry);
  }
  if (worker.incarnation_id != report.incarnation_id) {
    const std::vector<std::string>& retired = worker.retired_incarnations;
    if (std::find(retired.begin(), retired.end(), report.incarnation_id) != retired.end()) {
      ++counters_.stale_reports;
      reply.status = absl::FailedPreconditionError(
          fmt::format("a newer process reports as worker {}; this one must stop its ranks and end", report.worker_id));
      return false;
    }
    // A late report of a process that is dead must not end the ranks of the one that lives, which may be newer.
    const std::string greeting = fmt::format("{} after {}", report.incarnation_id, worker.incarnation_id);
    if (report.desired_fingerprint != greeting) {
      reply.greeting = greeting;
      return false;
    }
    TakeOver(entry, report.incarnation_id);
  } else if (report.sequence <= worker.sequence) {
    ++counters_.stale_reports;
    reply.status = absl::AbortedError(fmt::format("report {} of worker {} is older than report {}", report.sequence,
                                                  report.worker_id, worker.sequence));
    return false;
  }
  worker.sequence = report.sequence;
  return true;
}

// Ranks die with their daemon: those of the process before are gone.
void Core::State::TakeOver(WorkerEntry& entry, const std::string& incarnation_id) {
  Worker& worker = entry.worker;
  worker.retired_incarnations.push_back(worker.incarnation_id);
  if (worker.retired_incarnations.size() > kRetiredIncarnationsMax) {
    worker.retired_incarnations.erase(worker.retired_incarnations.begin());
  }
  worker.incarnation_id = incarnation_id;
  worker.sequence = 0;
  Touch(entry);
  const std::set<RankKey> lost = entry.ranks;
  for (const auto& [job_id, number, rank_number] : lost) {
    JobEntry& job = jobs_.at(job_id);
    Attempt& attempt = job.attempts.at(number);
    Rank& rank = attempt.ranks.at(rank_number);
    ReleaseRank(job, attempt, rank);
    Cause cause;
    cause.message = fmt::format("rank {} was lost: the daemon of worker {} restarted", rank.rank, worker.id);
    cause.worker_id = worker.id;
    cause.time = worker.last_seen;
    cause.stalls = false;
    if (!rank.exited) LoseRank(job, attempt, cause);
    Settle(job);
  }
}

// Its peers lose their connections and often tell of it long before the loss itself is known. The time of the cause is
// when the rank's worker was last heard of: what ended before then ended for another reason.
void Core::State::LoseRank(JobEntry& entry, Attempt& attempt, const Cause& cause) {
  if (IsLive(attempt)) {
    FailAttempt(entry, attempt, cause);
  } else {
    LearnLateCause(entry, attempt, cause);
  }
}

void Core::State::UpdateWorker(WorkerEntry& entry, const WorkerReport& report) {
  Worker& worker = entry.worker;
  if (worker.advertise_address != report.advertise_address || worker.http_port != report.http_port ||
      worker.labels != report.labels || worker.version != report.version || worker.leaving != report.leaving ||
      !SameSlots(worker.slots, report.slots)) {
    worker.advertise_address = report.advertise_address;
    worker.http_port = report.http_port;
    worker.labels = report.labels;
    worker.version = report.version;
    worker.leaving = report.leaving;
    worker.slots = report.slots;
    slot_kinds_.reset();
    Touch(entry);
    pass_due_ = true;
  }
  if (!worker.up) {
    worker.up = true;
    Touch(entry);
    pass_due_ = true;
  }
  worker.last_seen = now_;
  worker.lease_end = now_ + options_.lease;
  worker.release_time = now_ + options_.slot_reuse_after;
  deadline_ = std::min(deadline_, DeadlineOf(worker));
}

RankAcknowledgement Core::State::OnRankReport(const WorkerReport& report, const RankReport& rank_report) {
  RankAcknowledgement acknowledgement;
  acknowledgement.job_id = rank_report.job_id;
  acknowledgement.attempt = rank_report.attempt;
  acknowledgement.rank = rank_report.rank;
  const auto job = jobs_.find(rank_report.job_id);
  if (job != jobs_.end()) {
    JobEntry& entry = job->second;
    const auto attempt = entry.attempts.find(rank_report.attempt);
    if (attempt != entry.attempts.end() && rank_report.rank >= 0 &&
        rank_report.rank < static_cast<int64_t>(attempt->second.ranks.size())) {
      Rank& rank = attempt->second.ranks[rank_report.rank];
      if (rank.worker_id == report.worker_id && rank.incarnation_id == report.incarnation_id) {
        // A rank that ended and was told so already; its answer was lost.
        if (rank.exited) {
          acknowledgement.exit = rank_report.state == RankState::kExited;
          acknowledgement.sample_sequence = attempt->second.sample_sequence;
          return acknowledgement;
        }
        if (!rank.released) {
          if (attempt->second.number == entry.job.attempt && !IsTerminal(entry.job.state)) {
            RecordResults(entry, attempt->second, rank_report, acknowledgement);
          }
          OnRankState(entry, attempt->second, rank, rank_report);
          acknowledgement.exit = rank.exited;
          return acknowledgement;
        }
      }
    }
  }
  ++counters_.fenced_reports;
  acknowledgement.fenced = true;
  return acknowledgement;
}

void Core::State::OnRankState(JobEntry& entry, Attempt& attempt, Rank& rank, const RankReport& report) {
  const RankState state = report.exit.has_value() ? RankState::kExited : report.state;
  rank.reached_step = std::max(rank.reached_step, report.reached_step);
  if (!rank.seen || rank.state != state) {
    rank.seen = true;
    rank.state = state;
    Touch(attempt);
  }
  if (IsLive(attempt) && rank.rank == 0) {
    if (!report.store_address.empty() && report.store_address != attempt.store_address) {
      attempt.store_address = report.store_address;
      TouchRow(attempt);
      DesiredChanged(attempt);
    }
    if (report.phase != Phase::kUnspecified && report.phase != entry.job.phase) {
      Touch(entry);
      entry.job.phase = report.phase;
      entry.watch.last_progress = now_;
      entry.watch.expected_until = absl::InfinitePast();
      AddEvent(entry, "PHASE_STARTED", fmt::format("phase {} began", Name(report.phase)));
    }
  }
  if (report.expect_no_progress > absl::ZeroDuration()) {
    entry.watch.expected_until = std::max(entry.watch.expected_until, now_ + report.expect_no_progress);
  }
  if (state != RankState::kExited) {
    if (IsLive(attempt)) MarkRunning(entry, attempt);
    return;
  }
  const RankExit exit = report.exit.value_or(UnknownExit());
  rank.exited = true;
  rank.exit_code = exit.exit_code;
  rank.signal = exit.signal;
  rank.stopped = exit.stopped;
  rank.failure_class = exit.failure_class;
  rank.message = LastBytes(exit.message, kMessageBytesMax);
  rank.log_tail = LastBytes(exit.log_tail, kLogTailBytesMax);
  rank.exit_time = now_ - std::max(absl::ZeroDuration(), exit.age);
  ReleaseRank(entry, attempt, rank);
  if (IsLive(attempt)) return OnRankExit(entry, attempt, rank);
  const bool failed = !rank.stopped && (rank.exit_code != 0 || rank.signal != 0) && rank.exit_code != 40;
  if (failed && !IsTerminal(entry.job.state)) LearnLateCause(entry, attempt, CauseOf(rank));
  Settle(entry);
}

void Core::State::RecordResults(JobEntry& entry, Attempt& attempt, const RankReport& report,
                                RankAcknowledgement& acknowledgement) {
  if (report.rank == 0) {
    for (const Sample& sample : report.samples) RecordSample(entry, attempt, sample);
    acknowledgement.sample_sequence = attempt.sample_sequence;
  } else if (!report.samples.empty()) {
    acknowledgement.sample_sequence = report.samples.back().sequence;  // only rank 0 speaks for the job
  }
  for (const Checkpoint& checkpoint : report.checkpoints) {
    RecordCheckpoint(entry, attempt, checkpoint);
    acknowledgement.checkpoints.push_back(checkpoint.name);
  }
  for (const Evaluation& evaluation : report.evaluations) RecordEvaluation(entry, attempt, evaluation);
  acknowledgement.evaluations = static_cast<int64_t>(report.evaluations.size());
  for (const Artifact& artifact : report.artifacts) RecordArtifact(entry, attempt, artifact);
  acknowledgement.artifacts = static_cast<int64_t>(report.artifacts.size());
  if (report.rank == 0) RecordWarnings(entry, attempt, report.warnings);
  acknowledgement.warnings = static_cast<int64_t>(report.warnings.size());
}

// The list only grows, so how many were stored says which are new; also after a restart.
void Core::State::RecordWarnings(JobEntry& entry, Attempt& attempt, const std::vector<std::string>& warnings) {
  const int64_t end = std::min(static_cast<int64_t>(warnings.size()), kWarningsMax);
  for (; attempt.warnings < end; ++attempt.warnings) {
    TouchRow(attempt);
    AddEvent(entry, "TRAINER_WARNING", "warning: " + FirstBytes(warnings[attempt.warnings], kMessageBytesMax));
  }
}

void Core::State::RecordSample(JobEntry& entry, Attempt& attempt, const Sample& sample) {
  if (sample.sequence <= attempt.sample_sequence) return;
  attempt.sample_sequence = sample.sequence;
  TouchRow(attempt);
  Touch(entry);
  Sample stored = sample;
  stored.sequence = ++entry.job.last_sample;
  stored.attempt = attempt.number;
  int64_t& best = entry.job.best_step[static_cast<int>(sample.phase)];
  if (sample.step > best) {
    best = sample.step;
    attempt.progressed = true;
  }
  Watch& watch = entry.watch;
  if (!watch.previous || watch.previous->phase != sample.phase || watch.previous->step != sample.step) {
    watch.last_progress = now_;
    watch.expected_until = absl::InfinitePast();  // what was announced is over
  }
  if (watch.previous && watch.previous->phase == sample.phase && sample.step > watch.previous->step &&
      sample.time > watch.previous->time) {
    const absl::Duration step_time = (sample.time - watch.previous->time) / (sample.step - watch.previous->step);
    // Slow to fall, quick to rise: one fast step must not make the next slow one look like a hang.
    watch.step_time = std::max(step_time, watch.step_time * 0.9 + step_time * 0.1);
  }
  watch.previous = sample;
  entry.progress = stored;
  effects_.transaction.samples.push_back({entry.job.id, std::move(stored)});
}

void Core::State::RecordCheckpoint(JobEntry& entry, Attempt& attempt, const Checkpoint& checkpoint) {
  int64_t newest_step = -1;
  for (const Checkpoint& known : entry.checkpoints) {
    if (known.name == checkpoint.name) return;
    newest_step = std::max(newest_step, known.step);
  }
  Checkpoint stored = checkpoint;
  stored.attempt = attempt.number;
  stored.time = now_;
  if (stored.step > newest_step) {
    attempt.progressed = true;
    TouchRow(attempt);
  }
  entry.watch.last_progress = now_;
  entry.checkpoints.push_back(stored);
  AddEvent(entry, "CHECKPOINT_RECORDED", fmt::format("checkpoint {} of step {}", stored.name, stored.step));
  effects_.transaction.checkpoints.push_back({entry.job.id, std::move(stored)});
  DesiredChanged(attempt);
}

void Core::State::RecordEvaluation(JobEntry& entry, Attempt& attempt, const Evaluation& evaluation) {
  const auto same = std::find_if(entry.evaluations.begin(), entry.evaluations.end(), [&](const Evaluation& known) {
    return known.model == evaluation.model && known.length == evaluation.length &&
           known.protocol == evaluation.protocol && known.step == evaluation.step;
  });
  if (same != entry.evaluations.end()) {
    if (same->perplexity == evaluation.perplexity && same->loss == evaluation.loss &&
        same->tokens == evaluation.tokens && same->score == evaluation.score && same->examples == evaluation.examples) {
      return;
    }
    *same = evaluation;
  } else {
    entry.evaluations.push_back(evaluation);
  }
  Touch(entry);
  entry.watch.last_progress = now_;
  effects_.transaction.evaluations.push_back({entry.job.id, evaluation});
}

void Core::State::RecordArtifact(JobEntry& entry, Attempt& attempt, Artifact artifact) {
  artifact.excerpt = FirstBytes(artifact.excerpt, kExcerptBytesMax);
  const auto same = std::find_if(entry.artifacts.begin(), entry.artifacts.end(),
                                 [&](const Artifact& known) { return known.kind == artifact.kind; });
  if (same != entry.artifacts.end()) {
    if (*same == artifact) return;
    *same = artifact;
  } else {
    entry.artifacts.push_back(artifact);
  }
  entry.watch.last_progress = now_;
  AddEvent(entry, "ARTIFACT_PUBLISHED", fmt::format("{} at {}", artifact.kind, artifact.path));
  effects_.transaction.artifacts.push_back({entry.job.id, artifact});
}

// The ranks that a worker which acts on the newest desired ranks must name, unless they are gone. A live rank that
// nobody saw yet may be on its way.
std::set<Core::State::RankKey> Core::State::RanksToName(const WorkerEntry& entry) const {
  std::set<RankKey> ranks;
  for (const RankKey& key : entry.ranks) {
    const Attempt& attempt = jobs_.at(std::get<0>(key)).attempts.at(std::get<1>(key));
    if (!IsLive(attempt) || attempt.ranks.at(std::get<2>(key)).seen) ranks.insert(key);
  }
  return ranks;
}

void Core::State::OnRankMissing(const RankKey& key) {
  const auto& [job_id, number, rank_number] = key;
  JobEntry& job = jobs_.at(job_id);
  Attempt& attempt = job.attempts.at(number);
  Rank& rank = attempt.ranks.at(rank_number);
  ReleaseRank(job, attempt, rank);
  if (!IsLive(attempt)) return Settle(job);
  Cause cause;
  cause.message = fmt::format("rank {} disappeared from worker {}", rank.rank, rank.worker_id);
  cause.worker_id = rank.worker_id;
  cause.time = now_;
  FailAttempt(job, attempt, cause);
}

// Rank 0 tells of steps. When it has ended well and others have not, any of them says that time passes.
bool Core::State::TellsProgress(const WorkerId& worker_id, const JobEntry& entry) {
  if (entry.attempts.empty()) return false;
  const Rank& first = entry.attempts.rbegin()->second.ranks.front();
  return first.exited || first.worker_id == worker_id;
}

// Asked only when a worker has just spoken that could have told of a step, so that silence on the network is never
// taken for a hanging trainer.
void Core::State::CheckProgress(JobEntry& entry) {
  if (entry.job.state != JobState::kRunning) return;
  Attempt& attempt = *NewestAttempt(entry);
  const Watch& watch = entry.watch;
  const absl::Duration patience =
      watch.previous ? std::max(options_.progress_deadline_min, watch.step_time * options_.progress_step_times_max)
                     : options_.first_progress_deadline;
  if (now_ < std::max(watch.last_progress, watch.expected_until) + patience) return;
  Cause cause;
  cause.message = fmt::format("no progress for {:.0f} s in phase {}{}",
                              absl::ToDoubleSeconds(now_ - watch.last_progress), Name(entry.job.phase),
                              watch.previous ? fmt::format(" after step {}", watch.previous->step) : std::string());
  cause.worker_id = attempt.ranks.front().worker_id;
  cause.time = now_;
  BlameRanksBehind(entry, attempt, cause);
  FailAttempt(entry, attempt, cause);
}

// All ranks make a step together, so their counts of whole steps say nothing: what tells is whose own part of the next
// step is done. What a worker said before the standstill is not known to be true any more.
void Core::State::BlameRanksBehind(const JobEntry& entry, const Attempt& attempt, Cause& cause) const {
  if (entry.job.phase != Phase::kTrain) return;
  int64_t furthest = 0;
  for (const Rank& rank : attempt.ranks) furthest = std::max(furthest, rank.reached_step);
  if (furthest == 0) return;  // a trainer that does not tell
  std::vector<const Rank*> behind;
  std::vector<const Rank*> unheard;
  for (const Rank& rank : attempt.ranks) {
    if (workers_.at(rank.worker_id).worker.last_seen < entry.watch.last_progress + kReachedAgeMax) {
      unheard.push_back(&rank);
    } else if (rank.reached_step < furthest) {
      behind.push_back(&rank);
    }
  }
  if (!behind.empty()) {
    cause.worker_id = behind.front()->worker_id;
    cause.message += fmt::format("; {} did not do {} part of step {}, which others did", NamesOf(behind),
                                 behind.size() == 1 ? "its" : "their", furthest);
  } else if (!unheard.empty()) {
    cause.worker_id = unheard.front()->worker_id;
  } else {
    cause.message += fmt::format("; no rank is behind: each did its part of step {}", furthest);
  }
  if (!unheard.empty()) cause.message += fmt::format("; nothing was heard of {} since", NamesOf(unheard));
}

}  // namespace longspan::core
