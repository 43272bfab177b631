#include "server/store/rows.h"

#include <fmt/format.h>
#include <cmath>

#include <unordered_map>

#include "server/store/row_json.h"

namespace longspan::store {
namespace {

using core::JobState;
using core::Phase;

template <typename Enum>
int64_t Number(Enum value) {
  return static_cast<int64_t>(value);
}
template <typename Enum>
Enum FromNumber(int64_t number) {
  return static_cast<Enum>(number);
}

// Runs a select and hands each row to `take`, which returns a status.
template <typename Take>
absl::Status ForEachRow(Statement& statement, Take take) {
  while (true) {
    const absl::StatusOr<bool> row = statement.Step();
    if (!row.ok()) return row.status();
    if (!*row) return absl::OkStatus();
    if (absl::Status taken = take(statement); !taken.ok()) {
      statement.Reset();
      return taken;
    }
  }
}

absl::Status InsertJob(Database& database, const core::Job& job) {
  return database
      .Prepared(
          "INSERT INTO jobs (job_id, request_id, content_hash, spec_json, name, queue, priority, labels_json, "
          "gang_sizes_json, requirements_json, memory_bytes_min, threads_per_slot, max_attempts, max_run_time, owner, "
          "folder, submit_time, state, reason, message, phase, "
          "attempt, "
          "version, prepared, start_time, end_time, failed_attempts, stalled_attempts, retry_time, run_time, "
          "running_since, "
          "best_prepare, best_train, best_evaluate, best_export, last_event, last_sample, preemptions, "
          "reserved_json, reserved_until) "
          "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)")
      .BindAll(job.id.value(), job.request_id, job.content_hash, job.spec_json, job.name, job.queue, job.priority,
               ToJson(job.labels), ToJson(job.gang_sizes), ToJson(job.requirements.labels),
               job.requirements.memory_bytes_min, job.threads_per_slot, job.max_attempts, job.max_run_time, job.owner,
               job.folder, job.submit_time)
      .BindAll(Number(job.state), job.reason, job.message, Number(job.phase), job.attempt, job.version, job.prepared,
               job.start_time, job.end_time, job.failed_attempts, job.stalled_attempts, job.retry_time, job.run_time,
               job.running_since, job.best_step[1], job.best_step[2], job.best_step[3], job.best_step[4],
               job.last_event, job.last_sample)
      .BindAll(job.preemptions, ToJson(job.reserved), job.reserved_until)
      .Run();
}

core::Job ReadJob(Statement& row, absl::Status& status) {
  core::Job job;
  job.id = JobId(row.Text());
  job.request_id = row.Text();
  job.content_hash = row.Text();
  job.spec_json = row.Text();
  job.name = row.Text();
  job.queue = row.Text();
  job.priority = row.Integer();
  status.Update(FromJson(row.Text(), job.labels));
  status.Update(FromJson(row.Text(), job.gang_sizes));
  status.Update(FromJson(row.Text(), job.requirements.labels));
  job.requirements.memory_bytes_min = row.Integer();
  job.threads_per_slot = row.Integer();
  job.max_attempts = row.Integer();
  job.max_run_time = row.Duration();
  job.owner = row.Text();
  job.folder = row.Text();
  job.submit_time = row.Time();
  job.state = FromNumber<JobState>(row.Integer());
  job.reason = row.Text();
  job.message = row.Text();
  job.phase = FromNumber<Phase>(row.Integer());
  job.attempt = row.Integer();
  job.version = row.Integer();
  job.prepared = row.Bool();
  job.start_time = row.Time();
  job.end_time = row.Time();
  job.failed_attempts = row.Integer();
  job.stalled_attempts = row.Integer();
  job.retry_time = row.Time();
  job.run_time = row.Duration();
  job.running_since = row.Time();
  for (int phase = 1; phase < core::kPhaseCount; ++phase) job.best_step[phase] = row.Integer();
  job.last_event = row.Integer();
  job.last_sample = row.Integer();
  job.preemptions = row.Integer();
  status.Update(FromJson(row.Text(), job.reserved));
  job.reserved_until = row.Time();
  return job;
}

constexpr char kSelectJobs[] =
    "SELECT job_id, request_id, content_hash, spec_json, name, queue, priority, labels_json, gang_sizes_json, "
    "requirements_json, memory_bytes_min, threads_per_slot, max_attempts, max_run_time, owner, folder, submit_time, "
    "state, reason, message, phase, attempt, version, "
    "prepared, "
    "start_time, end_time, failed_attempts, stalled_attempts, retry_time, run_time, running_since, best_prepare, "
    "best_train, "
    "best_evaluate, best_export, last_event, last_sample, preemptions, reserved_json, reserved_until FROM jobs ORDER "
    "BY submission";

absl::Status WriteRank(Database& database, const core::Attempt& attempt, const core::Rank& rank) {
  return database
      .Prepared(
          "INSERT INTO ranks (job_id, attempt, rank, worker_id, slot, incarnation_id, state, seen, released, exited, "
          "exit_code, "
          "signal, stopped, failure_class, message, log_tail, exit_time) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) "
          "ON CONFLICT (job_id, attempt, rank) DO UPDATE SET incarnation_id = excluded.incarnation_id, state = "
          "excluded.state, "
          "seen = excluded.seen, released = excluded.released, exited = excluded.exited, exit_code = "
          "excluded.exit_code, "
          "signal = excluded.signal, stopped = excluded.stopped, failure_class = excluded.failure_class, "
          "message = excluded.message, log_tail = excluded.log_tail, exit_time = excluded.exit_time")
      .BindAll(attempt.job_id.value(), attempt.number, rank.rank, rank.worker_id.value(), rank.slot,
               rank.incarnation_id, Number(rank.state), rank.seen, rank.released, rank.exited, rank.exit_code,
               rank.signal, rank.stopped, Number(rank.failure_class), rank.message, rank.log_tail, rank.exit_time)
      .Run();
}

core::Rank ReadRank(Statement& row) {
  core::Rank rank;
  rank.rank = row.Integer();
  rank.worker_id = WorkerId(row.Text());
  rank.slot = row.Integer();
  rank.incarnation_id = row.Text();
  rank.state = FromNumber<core::RankState>(row.Integer());
  rank.seen = row.Bool();
  rank.released = row.Bool();
  rank.exited = row.Bool();
  rank.exit_code = static_cast<int>(row.Integer());
  rank.signal = static_cast<int>(row.Integer());
  rank.stopped = row.Bool();
  rank.failure_class = FromNumber<core::FailureClass>(row.Integer());
  rank.message = row.Text();
  rank.log_tail = row.Text();
  rank.exit_time = row.Time();
  return rank;
}

core::Attempt ReadAttempt(Statement& row, const JobId& job_id) {
  core::Attempt attempt;
  attempt.job_id = job_id;
  attempt.number = row.Integer();
  attempt.phase = FromNumber<Phase>(row.Integer());
  attempt.command = row.Text();
  attempt.start_time = row.Time();
  attempt.end_time = row.Time();
  attempt.failure_class = FromNumber<core::FailureClass>(row.Integer());
  attempt.message = row.Text();
  attempt.cause_worker = WorkerId(row.Text());
  attempt.cause_time = row.Time();
  attempt.resumed_from = row.Text();
  attempt.manifest_sha256 = row.Text();
  attempt.store_address = row.Text();
  attempt.stop_time = row.Time();
  attempt.progressed = row.Bool();
  attempt.sample_sequence = row.Integer();
  attempt.warnings = row.Integer();
  return attempt;
}

absl::StatusOr<core::Sample> ReadSample(Statement& row) {
  core::Sample sample;
  sample.sequence = row.Integer();
  sample.attempt = row.Integer();
  sample.phase = FromNumber<Phase>(row.Integer());
  sample.step = row.Integer();
  sample.steps = row.Integer();
  if (absl::Status parsed = FromJson(row.Text(), sample.values); !parsed.ok()) return parsed;
  sample.time = row.Time();
  return sample;
}

// The rows of one job that hang on it. Statements are reused from job to job.
absl::Status LoadJobParts(Database& database, core::StoredState::JobRows& rows) {
  const std::string& job_id = rows.job.id.value();
  absl::Status status = ForEachRow(
      database
          .Prepared(
              "SELECT number, phase, command, start_time, end_time, failure_class, message, cause_worker, cause_time, "
              "resumed_from, manifest_sha256, store_address, stop_time, progressed, sample_sequence, warnings "
              "FROM attempts WHERE job_id = ? ORDER BY number")
          .Bind(job_id),
      [&](Statement& row) {
        rows.attempts.push_back(ReadAttempt(row, rows.job.id));
        return absl::OkStatus();
      });
  for (core::Attempt& attempt : rows.attempts) {
    status.Update(ForEachRow(
        database
            .Prepared(
                "SELECT rank, worker_id, slot, incarnation_id, state, seen, released, exited, exit_code, signal, "
                "stopped, "
                "failure_class, message, log_tail, exit_time FROM ranks WHERE job_id = ? AND attempt = ? ORDER BY rank")
            .BindAll(job_id, attempt.number),
        [&](Statement& row) {
          attempt.ranks.push_back(ReadRank(row));
          return absl::OkStatus();
        }));
  }
  status.Update(ForEachRow(
      database
          .Prepared("SELECT name, step, attempt, manifest_sha256, size_bytes, time FROM checkpoints WHERE job_id = ? "
                    "ORDER BY ordinal")
          .Bind(job_id),
      [&](Statement& row) {
        core::Checkpoint& checkpoint = rows.checkpoints.emplace_back();
        checkpoint.name = row.Text();
        checkpoint.step = row.Integer();
        checkpoint.attempt = row.Integer();
        checkpoint.manifest_sha256 = row.Text();
        checkpoint.size_bytes = row.Integer();
        checkpoint.time = row.Time();
        return absl::OkStatus();
      }));
  status.Update(ForEachRow(database
                               .Prepared("SELECT model, length, protocol, step, perplexity, loss, tokens, score, "
                                         "examples FROM evaluations WHERE job_id = ? "
                                         "ORDER BY ordinal")
                               .Bind(job_id),
                           [&](Statement& row) {
                             core::Evaluation& evaluation = rows.evaluations.emplace_back();
                             evaluation.model = row.Text();
                             evaluation.length = row.Integer();
                             evaluation.protocol = row.Text();
                             evaluation.step = row.Integer();
                             evaluation.perplexity = row.Real();
                             evaluation.loss = row.Real();
                             evaluation.tokens = row.Integer();
                             evaluation.score = row.Real();
                             evaluation.examples = row.Integer();
                             return absl::OkStatus();
                           }));
  status.Update(ForEachRow(
      database.Prepared("SELECT kind, path, excerpt FROM artifacts WHERE job_id = ? ORDER BY ordinal").Bind(job_id),
      [&](Statement& row) {
        core::Artifact& artifact = rows.artifacts.emplace_back();
        artifact.kind = row.Text();
        artifact.path = row.Text();
        artifact.excerpt = row.Text();
        return absl::OkStatus();
      }));
  status.Update(ForEachRow(
      database
          .Prepared("SELECT sequence, attempt, phase, step, steps, values_json, time FROM samples WHERE job_id = ? "
                    "ORDER BY sequence DESC LIMIT 1")
          .Bind(job_id),
      [&](Statement& row) -> absl::Status {
        absl::StatusOr<core::Sample> sample = ReadSample(row);
        if (!sample.ok()) return sample.status();
        rows.newest_sample = *std::move(sample);
        return absl::OkStatus();
      }));
  return status;
}

}  // namespace

absl::Status WriteJob(Database& database, const core::JobWrite& write) {
  const core::Job& job = write.job;
  if (write.expected_version == 0) return InsertJob(database, job);
  absl::Status updated =
      database
          .Prepared(
              "UPDATE jobs SET priority = ?, labels_json = ?, state = ?, reason = ?, message = ?, phase = ?, attempt = "
              "?, "
              "version = ?, prepared = ?, start_time = ?, end_time = ?, failed_attempts = ?, stalled_attempts = ?, "
              "retry_time = ?, run_time = ?, running_since = ?, best_prepare = ?, best_train = ?, best_evaluate = ?, "
              "best_export = ?, last_event = ?, last_sample = ?, preemptions = ?, reserved_json = ?, "
              "reserved_until = ? WHERE job_id = ? AND version = ? AND state = ?")
          .BindAll(job.priority, ToJson(job.labels), Number(job.state), job.reason, job.message, Number(job.phase),
                   job.attempt, job.version, job.prepared, job.start_time, job.end_time, job.failed_attempts,
                   job.stalled_attempts, job.retry_time, job.run_time, job.running_since, job.best_step[1],
                   job.best_step[2], job.best_step[3], job.best_step[4], job.last_event, job.last_sample)
          .BindAll(job.preemptions, ToJson(job.reserved), job.reserved_until)
          .BindAll(job.id.value(), write.expected_version, Number(write.expected_state))
          .Run();
  if (updated.ok() && database.changes() != 1) {
    return absl::InternalError(fmt::format("{} is not at version {} in state {} in the database", job.id,
                                           write.expected_version, core::Name(write.expected_state)));
  }
  return updated;
}

absl::Status WriteWorker(Database& database, const core::Worker& worker) {
  return database
      .Prepared(
          "INSERT INTO workers (worker_id, advertise_address, http_port, slots_json, labels_json, version, "
          "incarnation_id, "
          "retired_json, draining, leaving, placements, last_seen) VALUES (?,?,?,?,?,?,?,?,?,?,?,?) "
          "ON CONFLICT (worker_id) DO UPDATE SET advertise_address = excluded.advertise_address, "
          "http_port = excluded.http_port, slots_json = excluded.slots_json, labels_json = excluded.labels_json, "
          "version = excluded.version, incarnation_id = excluded.incarnation_id, retired_json = excluded.retired_json, "
          "draining = excluded.draining, leaving = excluded.leaving, placements = excluded.placements, "
          "last_seen = excluded.last_seen")
      .BindAll(worker.id.value(), worker.advertise_address, worker.http_port, ToJson(worker.slots),
               ToJson(worker.labels), worker.version, worker.incarnation_id, ToJson(worker.retired_incarnations),
               worker.draining, worker.leaving, worker.placements, worker.last_seen)
      .Run();
}

absl::Status DeleteJob(Database& database, const JobId& job_id) {
  return database.Prepared("DELETE FROM jobs WHERE job_id = ?").Bind(job_id.value()).Run();
}

absl::Status WriteQueue(Database& database, const core::Queue& queue) {
  return database
      .Prepared(
          "INSERT INTO queues (name, weight, slots_max, waiting_max, run_time_default, used_slot_seconds, used_time) "
          "VALUES (?,?,?,?,?,?,?) ON CONFLICT (name) DO UPDATE SET weight = excluded.weight, "
          "slots_max = excluded.slots_max, waiting_max = excluded.waiting_max, "
          "run_time_default = excluded.run_time_default, used_slot_seconds = excluded.used_slot_seconds, "
          "used_time = excluded.used_time")
      .BindAll(queue.name, queue.weight, queue.slots_max, queue.waiting_max, queue.run_time_default,
               queue.used_slot_seconds, queue.used_time)
      .Run();
}

absl::Status WriteAttempt(Database& database, const core::AttemptWrite& attempt) {
  absl::Status status =
      database
          .Prepared(
              "INSERT INTO attempts (job_id, number, phase, command, start_time, end_time, failure_class, message, "
              "cause_worker, cause_time, resumed_from, manifest_sha256, store_address, stop_time, progressed, "
              "sample_sequence, warnings) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) "
              "ON CONFLICT (job_id, number) DO UPDATE SET "
              "end_time = excluded.end_time, failure_class = excluded.failure_class, message = excluded.message, "
              "cause_worker = excluded.cause_worker, cause_time = excluded.cause_time, "
              "store_address = excluded.store_address, stop_time = excluded.stop_time, "
              "progressed = excluded.progressed, sample_sequence = excluded.sample_sequence, warnings = "
              "excluded.warnings")
          .BindAll(attempt.job_id.value(), attempt.number, Number(attempt.phase), attempt.command, attempt.start_time,
                   attempt.end_time, Number(attempt.failure_class), attempt.message, attempt.cause_worker.value(),
                   attempt.cause_time, attempt.resumed_from, attempt.manifest_sha256, attempt.store_address,
                   attempt.stop_time, attempt.progressed, attempt.sample_sequence, attempt.warnings)
          .Run();
  if (!attempt.ranks_changed) return status;
  for (const core::Rank& rank : attempt.ranks) {
    if (!status.ok()) return status;
    status = WriteRank(database, attempt, rank);
  }
  return status;
}

absl::Status WriteEvent(Database& database, const JobId& job_id, const core::JobEvent& event) {
  return database
      .Prepared("INSERT INTO events (job_id, sequence, time, state, reason, message, attempt) VALUES (?,?,?,?,?,?,?)")
      .BindAll(job_id.value(), event.sequence, event.time, Number(event.state), event.reason, event.message,
               event.attempt)
      .Run();
}

namespace {

// Of samples older than `age` others, every tenth stays: looked at in blocks as long as the age, when one is complete.
absl::Status ThinSamples(Database& database, const JobId& job_id, int64_t newest, int64_t age, int64_t every) {
  if (newest % age != 0) return absl::OkStatus();
  return database
      .Prepared("DELETE FROM samples WHERE job_id = ? AND sequence > ? AND sequence <= ? AND sequence % ? <> 0")
      .BindAll(job_id.value(), newest - 2 * age, newest - age, every)
      .Run();
}

}  // namespace

absl::Status WriteSample(Database& database, const JobId& job_id, const core::Sample& sample) {
  absl::Status written =
      database
          .Prepared(
              "INSERT INTO samples (job_id, sequence, attempt, phase, step, steps, values_json, time) VALUES "
              "(?,?,?,?,?,?,?,?)")
          .BindAll(job_id.value(), sample.sequence, sample.attempt, Number(sample.phase), sample.step, sample.steps,
                   ToJson(sample.values), sample.time)
          .Run();
  if (written.ok()) written = ThinSamples(database, job_id, sample.sequence, kSamplesWhole, 10);
  if (written.ok()) written = ThinSamples(database, job_id, sample.sequence, 10 * kSamplesWhole, 100);
  return written;
}

absl::Status WriteCheckpoint(Database& database, const JobId& job_id, const core::Checkpoint& checkpoint) {
  return database
      .Prepared(
          "INSERT INTO checkpoints (job_id, name, step, attempt, manifest_sha256, size_bytes, time) VALUES "
          "(?,?,?,?,?,?,?)")
      .BindAll(job_id.value(), checkpoint.name, checkpoint.step, checkpoint.attempt, checkpoint.manifest_sha256,
               checkpoint.size_bytes, checkpoint.time)
      .Run();
}

absl::Status WriteEvaluation(Database& database, const JobId& job_id, const core::Evaluation& evaluation) {
  return database
      .Prepared(
          "INSERT INTO evaluations (job_id, model, length, protocol, step, perplexity, loss, tokens, score, examples) "
          "VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (job_id, model, length, protocol, step) DO UPDATE SET "
          "perplexity = excluded.perplexity, loss = excluded.loss, tokens = excluded.tokens, score = excluded.score, "
          "examples = excluded.examples")
      .BindAll(job_id.value(), evaluation.model, evaluation.length, evaluation.protocol, evaluation.step,
               evaluation.perplexity, evaluation.loss, evaluation.tokens,
               std::isfinite(evaluation.score) ? evaluation.score : 0.0, evaluation.examples)
      .Run();
}

absl::Status WriteArtifact(Database& database, const JobId& job_id, const core::Artifact& artifact) {
  return database
      .Prepared(
          "INSERT INTO artifacts (job_id, kind, path, excerpt) VALUES (?,?,?,?) "
          "ON CONFLICT (job_id, kind) DO UPDATE SET path = excluded.path, excerpt = excluded.excerpt")
      .BindAll(job_id.value(), artifact.kind, artifact.path, artifact.excerpt)
      .Run();
}

absl::Status LoadAll(Database& database, core::StoredState& state) {
  absl::Status parsed;
  absl::Status status = ForEachRow(database.Prepared(kSelectJobs), [&](Statement& row) {
    state.jobs.emplace_back().job = ReadJob(row, parsed);
    return parsed;
  });
  for (core::StoredState::JobRows& rows : state.jobs) {
    if (!status.ok()) return status;
    status = LoadJobParts(database, rows);
  }
  if (!status.ok()) return status;
  status = ForEachRow(
      database.Prepared("SELECT name, weight, slots_max, waiting_max, run_time_default, used_slot_seconds, used_time "
                        "FROM queues ORDER BY name"),
      [&](Statement& row) {
        core::Queue& queue = state.queues.emplace_back();
        queue.name = row.Text();
        queue.weight = row.Real();
        queue.slots_max = row.Integer();
        queue.waiting_max = row.Integer();
        queue.run_time_default = row.Duration();
        queue.used_slot_seconds = row.Real();
        queue.used_time = row.Time();
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return ForEachRow(
      database.Prepared(
          "SELECT worker_id, advertise_address, http_port, slots_json, labels_json, version, incarnation_id, "
          "retired_json, draining, leaving, placements, last_seen FROM workers ORDER BY worker_id"),
      [&](Statement& row) {
        core::Worker& worker = state.workers.emplace_back();
        worker.id = WorkerId(row.Text());
        worker.advertise_address = row.Text();
        worker.http_port = row.Integer();
        parsed.Update(FromJson(row.Text(), worker.slots));
        parsed.Update(FromJson(row.Text(), worker.labels));
        worker.version = row.Text();
        worker.incarnation_id = row.Text();
        parsed.Update(FromJson(row.Text(), worker.retired_incarnations));
        worker.draining = row.Bool();
        worker.leaving = row.Bool();
        worker.placements = row.Integer();
        worker.last_seen = row.Time();
        return parsed;
      });
}

absl::StatusOr<std::vector<core::JobEvent>> ReadEvents(Database& database, const JobId& job_id, int64_t after,
                                                       int64_t limit) {
  std::vector<core::JobEvent> events;
  absl::Status status = ForEachRow(
      database
          .Prepared("SELECT sequence, time, state, reason, message, attempt FROM events WHERE job_id = ? AND "
                    "sequence > ? ORDER BY sequence LIMIT ?")
          .BindAll(job_id.value(), after, limit),
      [&](Statement& row) {
        core::JobEvent& event = events.emplace_back();
        event.sequence = row.Integer();
        event.time = row.Time();
        event.state = FromNumber<JobState>(row.Integer());
        event.reason = row.Text();
        event.message = row.Text();
        event.attempt = row.Integer();
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return events;
}

absl::StatusOr<std::vector<core::Sample>> ReadSamples(Database& database, const JobId& job_id, int64_t after,
                                                      int64_t limit) {
  std::vector<core::Sample> samples;
  absl::Status status = ForEachRow(
      database
          .Prepared("SELECT sequence, attempt, phase, step, steps, values_json, time FROM samples WHERE job_id = ? AND "
                    "sequence > ? ORDER BY sequence LIMIT ?")
          .BindAll(job_id.value(), after, limit),
      [&](Statement& row) -> absl::Status {
        absl::StatusOr<core::Sample> sample = ReadSample(row);
        if (!sample.ok()) return sample.status();
        samples.push_back(*std::move(sample));
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return samples;
}

}  // namespace longspan::store
