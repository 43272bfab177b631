#include "server/store/migrations.h"

#include <fmt/format.h>

namespace longspan::store {
namespace {

// Times and durations are nanoseconds, the ends of the range being the infinities. States, phases and classes are the
// numbers of proto/longspan/v1. JSON only for what no query looks into.
constexpr char kFirst[] = R"sql(
CREATE TABLE jobs (
  submission INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id TEXT NOT NULL UNIQUE,
  request_id TEXT NOT NULL UNIQUE,
  content_hash TEXT NOT NULL,
  spec_json TEXT NOT NULL,
  name TEXT NOT NULL,
  queue TEXT NOT NULL,
  priority INTEGER NOT NULL,
  labels_json TEXT NOT NULL,
  slots INTEGER NOT NULL,
  threads_per_slot INTEGER NOT NULL,
  max_attempts INTEGER NOT NULL,
  max_run_time INTEGER NOT NULL,
  owner TEXT NOT NULL,
  folder TEXT NOT NULL,
  submit_time INTEGER NOT NULL,
  state INTEGER NOT NULL,
  reason TEXT NOT NULL,
  message TEXT NOT NULL,
  phase INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  version INTEGER NOT NULL,
  prepared INTEGER NOT NULL,
  start_time INTEGER NOT NULL,
  end_time INTEGER NOT NULL,
  failed_attempts INTEGER NOT NULL,
  stalled_attempts INTEGER NOT NULL,
  retry_time INTEGER NOT NULL,
  run_time INTEGER NOT NULL,
  running_since INTEGER NOT NULL,
  best_prepare INTEGER NOT NULL,
  best_train INTEGER NOT NULL,
  best_evaluate INTEGER NOT NULL,
  best_export INTEGER NOT NULL,
  last_event INTEGER NOT NULL,
  last_sample INTEGER NOT NULL
);
CREATE TABLE workers (
  worker_id TEXT PRIMARY KEY,
  advertise_address TEXT NOT NULL,
  http_port INTEGER NOT NULL,
  slots_json TEXT NOT NULL,
  labels_json TEXT NOT NULL,
  version TEXT NOT NULL,
  incarnation_id TEXT NOT NULL,
  retired_json TEXT NOT NULL,
  draining INTEGER NOT NULL,
  leaving INTEGER NOT NULL,
  placements INTEGER NOT NULL,
  last_seen INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE attempts (
  job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
  number INTEGER NOT NULL,
  phase INTEGER NOT NULL,
  command TEXT NOT NULL,
  start_time INTEGER NOT NULL,
  end_time INTEGER NOT NULL,
  failure_class INTEGER NOT NULL,
  message TEXT NOT NULL,
  cause_worker TEXT NOT NULL,
  cause_time INTEGER NOT NULL,
  resumed_from TEXT NOT NULL,
  manifest_sha256 TEXT NOT NULL,
  store_address TEXT NOT NULL,
  stop_time INTEGER NOT NULL,
  progressed INTEGER NOT NULL,
  sample_sequence INTEGER NOT NULL,
  PRIMARY KEY (job_id, number)
) WITHOUT ROWID;
CREATE TABLE ranks (
  job_id TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  rank INTEGER NOT NULL,
  worker_id TEXT NOT NULL REFERENCES workers (worker_id),
  slot INTEGER NOT NULL,
  incarnation_id TEXT NOT NULL,
  state INTEGER NOT NULL,
  seen INTEGER NOT NULL,
  released INTEGER NOT NULL,
  exited INTEGER NOT NULL,
  exit_code INTEGER NOT NULL,
  signal INTEGER NOT NULL,
  stopped INTEGER NOT NULL,
  failure_class INTEGER NOT NULL,
  message TEXT NOT NULL,
  log_tail TEXT NOT NULL,
  exit_time INTEGER NOT NULL,
  PRIMARY KEY (job_id, attempt, rank),
  FOREIGN KEY (job_id, attempt) REFERENCES attempts (job_id, number) ON DELETE CASCADE
) WITHOUT ROWID;
-- A slot has one owner: the last line of defence behind the core's own rules.
CREATE UNIQUE INDEX slot_owner ON ranks (worker_id, slot) WHERE released = 0 AND slot >= 0;
CREATE TABLE events (
  job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
  sequence INTEGER NOT NULL,
  time INTEGER NOT NULL,
  state INTEGER NOT NULL,
  reason TEXT NOT NULL,
  message TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  PRIMARY KEY (job_id, sequence)
) WITHOUT ROWID;
CREATE TABLE samples (
  job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
  sequence INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  phase INTEGER NOT NULL,
  step INTEGER NOT NULL,
  steps INTEGER NOT NULL,
  values_json TEXT NOT NULL,
  time INTEGER NOT NULL,
  PRIMARY KEY (job_id, sequence)
) WITHOUT ROWID;
CREATE TABLE checkpoints (
  ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  step INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  manifest_sha256 TEXT NOT NULL,
  size_bytes INTEGER NOT NULL,
  time INTEGER NOT NULL,
  UNIQUE (job_id, name)
);
CREATE TABLE evaluations (
  ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
  model TEXT NOT NULL,
  length INTEGER NOT NULL,
  protocol TEXT NOT NULL,
  step INTEGER NOT NULL,
  perplexity REAL,
  loss REAL,
  tokens INTEGER NOT NULL,
  UNIQUE (job_id, model, length, protocol, step)
);
CREATE TABLE artifacts (
  ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
  kind TEXT NOT NULL,
  path TEXT NOT NULL,
  UNIQUE (job_id, kind)
);
)sql";

constexpr char kTaskScores[] =
    "ALTER TABLE evaluations ADD COLUMN score REAL NOT NULL DEFAULT 0;"
    "ALTER TABLE evaluations ADD COLUMN examples INTEGER NOT NULL DEFAULT 0";
constexpr char kArtifactExcerpt[] = "ALTER TABLE artifacts ADD COLUMN excerpt TEXT NOT NULL DEFAULT ''";

constexpr char kWarnings[] = "ALTER TABLE attempts ADD COLUMN warnings INTEGER NOT NULL DEFAULT 0";

constexpr char kScheduling[] = R"sql(
ALTER TABLE jobs ADD COLUMN gang_sizes_json TEXT NOT NULL DEFAULT '[1]';
UPDATE jobs SET gang_sizes_json = '[' || slots || ']';
ALTER TABLE jobs DROP COLUMN slots;
ALTER TABLE jobs ADD COLUMN requirements_json TEXT NOT NULL DEFAULT '{}';
ALTER TABLE jobs ADD COLUMN memory_bytes_min INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN preemptions INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN reserved_json TEXT NOT NULL DEFAULT '[]';
ALTER TABLE jobs ADD COLUMN reserved_until INTEGER NOT NULL DEFAULT -9223372036854775808;
CREATE TABLE queues (
  name TEXT PRIMARY KEY,
  weight REAL NOT NULL,
  slots_max INTEGER NOT NULL,
  waiting_max INTEGER NOT NULL,
  run_time_default INTEGER NOT NULL,
  used_slot_seconds REAL NOT NULL,
  used_time INTEGER NOT NULL
) WITHOUT ROWID;
)sql";

}  // namespace

const std::vector<Migration>& Migrations() {
  static const std::vector<Migration> migrations = {
      {1, kFirst}, {2, kTaskScores}, {3, kWarnings}, {4, kArtifactExcerpt}, {5, kScheduling}};
  return migrations;
}

absl::Status Migrate(Database& database, const std::vector<Migration>& migrations) {
  const absl::StatusOr<std::string> text = database.QueryText("PRAGMA user_version");
  if (!text.ok()) return text.status();
  const int version = std::stoi(*text);
  const int newest = migrations.empty() ? 0 : migrations.back().version;
  if (version > newest) {
    return absl::FailedPreconditionError(
        fmt::format("database {} has version {}, written by a newer program; this one knows versions up to {}",
                    database.path(), version, newest));
  }
  for (const Migration& migration : migrations) {
    if (migration.version <= version) continue;
    const absl::Status applied = database.Execute(
        fmt::format("BEGIN IMMEDIATE; {}; PRAGMA user_version = {}; COMMIT", migration.sql, migration.version));
    if (!applied.ok()) {
      // Fails when SQLite has rolled back already, which is as good.
      (void)database.Execute("ROLLBACK");
      return absl::Status(applied.code(), fmt::format("migration {}: {}", migration.version,
                                                      std::string(applied.message().data(), applied.message().size())));
    }
  }
  return absl::OkStatus();
}

}  // namespace longspan::store
