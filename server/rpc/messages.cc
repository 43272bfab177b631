#include "server/rpc/messages.h"

#include <fmt/format.h>

#include <algorithm>

#include "proto/jobfile/job_file.h"
#include "proto/support/job_spec_messages.h"

namespace longspan::rpc {
namespace {

constexpr int kRanksMax = 4096;
constexpr int kSlotsMax = 1024;

google::protobuf::Timestamp Timestamp(absl::Time time) {
  google::protobuf::Timestamp message;
  const int64_t seconds = absl::ToUnixSeconds(time);
  message.set_seconds(seconds);
  message.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
  return message;
}

bool IsKnown(absl::Time time) { return time != core::kNever && time != absl::InfinitePast(); }

google::protobuf::Duration DurationMessage(absl::Duration duration) {
  google::protobuf::Duration message;
  const int64_t seconds = absl::ToInt64Seconds(duration);
  message.set_seconds(seconds);
  message.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration - absl::Seconds(seconds))));
  return message;
}

absl::Duration FromMessage(const google::protobuf::Duration& message) {
  return absl::Seconds(message.seconds()) + absl::Nanoseconds(message.nanos());
}

absl::Time FromMessage(const google::protobuf::Timestamp& message) {
  return absl::FromUnixSeconds(message.seconds()) + absl::Nanoseconds(message.nanos());
}

v1::Attempt ToMessage(const core::Attempt& attempt) {
  v1::Attempt message;
  message.set_number(attempt.number);
  message.set_phase(static_cast<v1::Phase>(attempt.phase));
  for (const core::Rank& rank : attempt.ranks) {
    v1::RankPlacement* placement = message.add_ranks();
    placement->set_rank(rank.rank);
    placement->set_worker_id(rank.worker_id.value());
    placement->set_slot(rank.slot);
  }
  if (IsKnown(attempt.start_time)) *message.mutable_start_time() = Timestamp(attempt.start_time);
  if (IsKnown(attempt.end_time)) *message.mutable_end_time() = Timestamp(attempt.end_time);
  message.set_failure_class(static_cast<v1::FailureClass>(attempt.failure_class));
  message.set_message(attempt.message);
  message.set_resumed_from(attempt.resumed_from);
  return message;
}

core::Sample FromMessage(const v1::ProgressSample& message) {
  core::Sample sample;
  sample.sequence = message.sequence();
  sample.attempt = message.attempt();
  if (v1::Phase_IsValid(message.phase())) sample.phase = static_cast<core::Phase>(message.phase());
  sample.step = message.step();
  sample.steps = message.steps();
  sample.values = {message.values().begin(), message.values().end()};
  sample.time = FromMessage(message.time());
  return sample;
}

core::Checkpoint FromMessage(const v1::CheckpointRecord& message) {
  return {message.name(),       message.step(),
          message.attempt(),    message.manifest_sha256(),
          message.size_bytes(), FromMessage(message.time())};
}

core::Evaluation FromMessage(const v1::EvaluationRow& message) {
  return {message.model(),  message.length(), message.protocol(), message.perplexity(), message.loss(),
          message.tokens(), message.step(),   message.score(),    message.examples()};
}

core::RankExit FromMessage(const v1::RankExit& message) {
  core::RankExit exit;
  exit.exit_code = message.exit_code();
  exit.signal = message.signal();
  exit.stopped = message.stopped();
  exit.failure_class = static_cast<core::FailureClass>(message.failure_class());
  exit.message = message.message();
  exit.log_tail = message.log_tail();
  exit.age = absl::Milliseconds(std::max<int64_t>(0, message.age_ms()));
  return exit;
}

core::RankReport FromMessage(const v1::RankReport& message) {
  core::RankReport report;
  report.job_id = JobId(message.job_id());
  report.attempt = message.attempt();
  report.rank = message.rank();
  report.state = static_cast<core::RankState>(message.state());
  report.phase = static_cast<core::Phase>(message.phase());
  report.store_address = message.store_address();
  for (const auto& sample : message.samples()) report.samples.push_back(FromMessage(sample));
  for (const auto& checkpoint : message.checkpoints()) report.checkpoints.push_back(FromMessage(checkpoint));
  for (const auto& evaluation : message.evaluations()) report.evaluations.push_back(FromMessage(evaluation));
  for (const auto& artifact : message.artifacts()) {
    report.artifacts.push_back({artifact.kind(), artifact.path(), artifact.excerpt()});
  }
  report.warnings.assign(message.warnings().begin(), message.warnings().end());
  if (message.has_exit()) report.exit = FromMessage(message.exit());
  report.expect_no_progress = FromMessage(message.expect_no_progress());
  report.reached_step = message.reached_step();
  return report;
}

}  // namespace

v1::JobEvent ToMessage(const core::JobEvent& event) {
  v1::JobEvent message;
  message.set_sequence(event.sequence);
  *message.mutable_time() = Timestamp(event.time);
  message.set_state(static_cast<v1::JobState>(event.state));
  message.set_reason(event.reason);
  message.set_message(event.message);
  message.set_attempt(event.attempt);
  return message;
}

v1::ProgressSample ToMessage(const core::Sample& sample) {
  v1::ProgressSample message;
  message.set_sequence(sample.sequence);
  message.set_attempt(sample.attempt);
  message.set_phase(static_cast<v1::Phase>(sample.phase));
  message.set_step(sample.step);
  message.set_steps(sample.steps);
  for (const auto& [name, value] : sample.values) (*message.mutable_values())[name] = value;
  *message.mutable_time() = Timestamp(sample.time);
  return message;
}

v1::CheckpointRecord ToMessage(const core::Checkpoint& checkpoint) {
  v1::CheckpointRecord message;
  message.set_name(checkpoint.name);
  message.set_step(checkpoint.step);
  message.set_attempt(checkpoint.attempt);
  message.set_manifest_sha256(checkpoint.manifest_sha256);
  message.set_size_bytes(checkpoint.size_bytes);
  *message.mutable_time() = Timestamp(checkpoint.time);
  return message;
}

v1::EvaluationRow ToMessage(const core::Evaluation& evaluation) {
  v1::EvaluationRow message;
  message.set_model(evaluation.model);
  message.set_length(evaluation.length);
  message.set_protocol(evaluation.protocol);
  message.set_perplexity(evaluation.perplexity);
  message.set_loss(evaluation.loss);
  message.set_tokens(evaluation.tokens);
  message.set_step(evaluation.step);
  message.set_score(evaluation.score);
  message.set_examples(evaluation.examples);
  return message;
}

v1::Job ToMessage(const core::JobView& view) {
  const core::Job& job = view.job;
  v1::Job message;
  message.set_job_id(job.id.value());
  const jobfile::Parsed parsed = jobfile::ParseText(job.spec_json);
  if (parsed.spec) {
    jobfile::JobSpec spec = *parsed.spec;
    spec.priority = job.priority;
    spec.labels = job.labels;
    *message.mutable_spec() = jobfile::ToMessage(spec);
  }
  message.set_state(static_cast<v1::JobState>(job.state));
  message.set_reason(job.reason);
  message.set_status_message(job.message);
  message.set_phase(static_cast<v1::Phase>(job.phase));
  message.set_attempt(job.attempt);
  *message.mutable_submit_time() = Timestamp(job.submit_time);
  if (IsKnown(job.start_time)) *message.mutable_start_time() = Timestamp(job.start_time);
  if (IsKnown(job.end_time)) *message.mutable_end_time() = Timestamp(job.end_time);
  if (view.progress) *message.mutable_progress() = ToMessage(*view.progress);
  if (view.latest_checkpoint) *message.mutable_latest_checkpoint() = ToMessage(*view.latest_checkpoint);
  for (const core::Evaluation& evaluation : view.evaluations) *message.add_evaluations() = ToMessage(evaluation);
  for (const core::Artifact& artifact : view.artifacts) {
    v1::Artifact* added = message.add_artifacts();
    added->set_kind(artifact.kind);
    added->set_path(artifact.path);
    added->set_excerpt(artifact.excerpt);
  }
  for (const core::Attempt& attempt : view.attempts) *message.add_attempts() = ToMessage(attempt);
  message.set_queue_position(view.queue_position);
  message.set_version(job.version);
  message.set_folder(job.folder);
  message.set_owner(job.owner);
  if (IsKnown(view.expected_start)) *message.mutable_expected_start_time() = Timestamp(view.expected_start);
  message.set_preemptions(job.preemptions);
  for (const scheduler::Placement& place : job.reserved) {
    v1::ReservedSlot* slot = message.add_reserved_slots();
    slot->set_worker_id(place.worker_id.value());
    slot->set_slot(place.slot);
  }
  if (!job.reserved.empty()) *message.mutable_reserved_until_time() = Timestamp(job.reserved_until);
  return message;
}

v1::Worker ToMessage(const core::WorkerView& view) {
  const core::Worker& worker = view.worker;
  v1::Worker message;
  message.set_worker_id(worker.id.value());
  message.set_advertise_address(worker.advertise_address);
  message.set_http_port(worker.http_port);
  for (size_t i = 0; i < worker.slots.size(); ++i) {
    v1::Slot* slot = message.add_slots();
    slot->set_index(worker.slots[i].index);
    slot->set_device(worker.slots[i].device);
    slot->set_memory_bytes(worker.slots[i].memory_bytes);
    if (i < view.slot_jobs.size()) slot->set_job_id(view.slot_jobs[i].value());
  }
  message.set_up(worker.up);
  message.set_draining(worker.draining || worker.leaving);
  if (IsKnown(worker.last_seen)) *message.mutable_last_seen_time() = Timestamp(worker.last_seen);
  for (const auto& [key, value] : worker.labels) (*message.mutable_labels())[key] = value;
  message.set_version(worker.version);
  return message;
}

v1::DesiredRank ToMessage(const core::DesiredRank& rank) {
  v1::DesiredRank message;
  message.set_job_id(rank.job_id.value());
  message.set_attempt(rank.attempt);
  message.set_rank(rank.rank);
  message.set_world_size(rank.world_size);
  message.set_slot(rank.slot);
  message.set_command(rank.command);
  message.set_spec_json(rank.spec_json);
  message.set_folder(rank.folder);
  message.set_resume_from(rank.resume_from);
  message.set_manifest_sha256(rank.manifest_sha256);
  message.set_store_address(rank.store_address);
  message.set_action(static_cast<v1::DesiredRank::Action>(rank.action));
  message.set_threads(rank.threads);
  *message.mutable_stop_grace() = DurationMessage(rank.stop_grace);
  for (const std::string& name : rank.recorded_checkpoints) message.add_recorded_checkpoints(name);
  return message;
}

v1::RankAcknowledgement ToMessage(const core::RankAcknowledgement& acknowledgement) {
  v1::RankAcknowledgement message;
  message.set_job_id(acknowledgement.job_id.value());
  message.set_attempt(acknowledgement.attempt);
  message.set_rank(acknowledgement.rank);
  message.set_sample_sequence(acknowledgement.sample_sequence);
  for (const std::string& name : acknowledgement.checkpoints) message.add_checkpoints(name);
  message.set_evaluations(acknowledgement.evaluations);
  message.set_artifacts(acknowledgement.artifacts);
  message.set_warnings(acknowledgement.warnings);
  message.set_exit(acknowledgement.exit);
  message.set_fenced(acknowledgement.fenced);
  return message;
}

absl::StatusOr<core::WorkerReport> FromMessage(const v1::SynchronizeRequest& request) {
  if (request.worker_id().empty()) return absl::InvalidArgumentError("worker_id is empty; a worker needs a name");
  if (request.worker_id().size() > 128) return absl::InvalidArgumentError("worker_id is longer than 128 bytes");
  if (request.incarnation_id().empty()) return absl::InvalidArgumentError("incarnation_id is empty");
  if (request.ranks_size() > kRanksMax || request.slots_size() > kSlotsMax) {
    return absl::InvalidArgumentError(fmt::format("a report may have {} ranks and {} slots", kRanksMax, kSlotsMax));
  }
  core::WorkerReport report;
  report.worker_id = WorkerId(request.worker_id());
  report.incarnation_id = request.incarnation_id();
  report.sequence = request.sequence();
  report.advertise_address = request.advertise_address();
  report.http_port = request.http_port();
  for (const v1::Slot& slot : request.slots())
    report.slots.push_back({slot.index(), slot.device(), slot.memory_bytes()});
  report.labels = {request.labels().begin(), request.labels().end()};
  report.version = request.version();
  for (const v1::RankReport& rank : request.ranks()) {
    if (!v1::RankReport::State_IsValid(rank.state()) || !v1::Phase_IsValid(rank.phase()) ||
        !v1::FailureClass_IsValid(rank.exit().failure_class())) {
      return absl::InvalidArgumentError(
          fmt::format("rank {} of {}: unknown state, phase or failure class", rank.rank(), rank.job_id()));
    }
    report.ranks.push_back(FromMessage(rank));
  }
  report.leaving = request.leaving();
  report.desired_fingerprint = request.desired_fingerprint();
  return report;
}

}  // namespace longspan::rpc
