#include "server/store/migrations.h"

#include <gtest/gtest.h>

#include "server/core/core.h"
#include "server/store/rows.h"
#include "tests/temporary_folder.h"

namespace longspan::store {
namespace {

class MigrationsTest : public ::testing::Test {
 protected:
  std::unique_ptr<Database> Open() {
    return *Database::Open(folder_.File("db"), SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
  }
  testing::TemporaryFolder folder_;
};

TEST_F(MigrationsTest, AreNumberedWithoutGaps) {
  int expected = 1;
  for (const Migration& migration : Migrations()) EXPECT_EQ(migration.version, expected++);
}

TEST_F(MigrationsTest, BringAnEmptyDatabaseToTheNewestVersion) {
  const auto database = Open();
  ASSERT_EQ(*database->QueryText("PRAGMA user_version"), "0");
  ASSERT_TRUE(Migrate(*database, Migrations()).ok());
  EXPECT_EQ(*database->QueryText("PRAGMA user_version"), std::to_string(Migrations().back().version));
  EXPECT_EQ(*database->QueryText("SELECT count(*) FROM jobs"), "0");
  // Again: nothing to do.
  EXPECT_TRUE(Migrate(*database, Migrations()).ok());
}

TEST_F(MigrationsTest, ApplyOnlyWhatIsMissingAndKeepTheRows) {
  const std::vector<Migration> first = {{1, "CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (7)"}};
  const auto database = Open();
  ASSERT_TRUE(Migrate(*database, first).ok());
  std::vector<Migration> both = first;
  both.push_back({2, "ALTER TABLE t ADD COLUMN b TEXT NOT NULL DEFAULT 'x'"});
  ASSERT_TRUE(Migrate(*database, both).ok());
  EXPECT_EQ(*database->QueryText("SELECT a || b FROM t"), "7x");
}

// Rows of every earlier version of the database stay, with the values that the newer columns have by default.
TEST_F(MigrationsTest, EveryEarlierVersionComesToTheNewestWithItsRows) {
  for (size_t before = 1; before < Migrations().size(); ++before) {
    const auto database =
        *Database::Open(folder_.File("from-" + std::to_string(before)), SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    const std::vector<Migration> earlier(Migrations().begin(), Migrations().begin() + static_cast<ptrdiff_t>(before));
    ASSERT_TRUE(Migrate(*database, earlier).ok());
    ASSERT_EQ(*database->QueryText("PRAGMA user_version"), std::to_string(before));
    ASSERT_TRUE(
        database
            ->Execute(
                "PRAGMA foreign_keys = OFF;"
                "INSERT INTO jobs (job_id, request_id, content_hash, spec_json, name, queue, priority, labels_json,"
                " slots, threads_per_slot, max_attempts, max_run_time, owner, folder, submit_time, state, reason,"
                " message, phase, attempt, version, prepared, start_time, end_time, failed_attempts,"
                " stalled_attempts, retry_time, run_time, running_since, best_prepare, best_train, best_evaluate,"
                " best_export, last_event, last_sample) VALUES ('job-a', 'r', 'h', '{}', 'a', 'default', 50, '{}',"
                " 3, 1, 20, 9223372036854775807, '', '/jobs/a', 0, 1, '', '', 0, 0, 1, 1, 9223372036854775807,"
                " 9223372036854775807, 0, 0, 0, 0, 9223372036854775807, -1, -1, -1, -1, 0, 0);"
                "INSERT INTO artifacts (job_id, kind, path) VALUES ('job-a', 'dataset', '/d');"
                "INSERT INTO evaluations (job_id, model, length, protocol, step, perplexity, loss, tokens)"
                " VALUES ('job-a', 'base', 64, 'windows', 0, 2.5, 0.9, 100);")
            .ok());
    ASSERT_TRUE(Migrate(*database, Migrations()).ok()) << before;
    EXPECT_EQ(*database->QueryText("PRAGMA user_version"), std::to_string(Migrations().back().version));
    EXPECT_EQ(*database->QueryText("SELECT kind || path || '[' || excerpt || ']' FROM artifacts"), "dataset/d[]");
    EXPECT_EQ(*database->QueryText("SELECT perplexity || ' ' || score || ' ' || examples FROM evaluations"),
              "2.5 0.0 0");
    core::StoredState state;
    ASSERT_TRUE(LoadAll(*database, state).ok());
    ASSERT_EQ(state.jobs.size(), 1u);
    const core::Job& job = state.jobs[0].job;
    EXPECT_EQ(job.gang_sizes, std::vector<int64_t>{3}) << "slots of version " << before;
    EXPECT_EQ(job.requirements, scheduler::Requirements());
    EXPECT_TRUE(job.reserved.empty());
    EXPECT_EQ(job.reserved_until, absl::InfinitePast());
    EXPECT_EQ(job.end_time, core::kNever);
    core::Core core({});
    core.Step(core::Restarted{std::move(state)}, absl::FromUnixSeconds(1));
    EXPECT_EQ(core.ViewJob(JobId("job-a"))->job.state, core::JobState::kQueued);
  }
}

TEST_F(MigrationsTest, AFailedOneLeavesNothingBehind) {
  const auto database = Open();
  const absl::Status status = Migrate(*database, {{1, "CREATE TABLE t (a INTEGER); INSERT INTO missing VALUES (1)"}});
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(*database->QueryText("PRAGMA user_version"), "0");
  EXPECT_EQ(*database->QueryText("SELECT count(*) FROM sqlite_schema"), "0");
}

TEST_F(MigrationsTest, ADatabaseOfANewerProgramIsRefused) {
  const auto database = Open();
  ASSERT_TRUE(database->Execute("PRAGMA user_version = 99").ok());
  const absl::Status status = Migrate(*database, Migrations());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace longspan::store
