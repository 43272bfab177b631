#include "server/restore/restore.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "server/core/core.h"
#include "server/store/sqlite_store.h"
#include "tests/temporary_folder.h"

namespace longspan {
namespace {

namespace fs = std::filesystem;

core::Transaction RunningJob() {
  core::Transaction transaction;
  core::Job job;
  job.id = JobId("job-a");
  job.request_id = "a";
  job.spec_json = "{}";
  job.version = 1;
  job.state = core::JobState::kRunning;
  job.running_since = absl::FromUnixSeconds(1000);
  job.attempt = 2;
  job.prepared = true;
  transaction.jobs.push_back({job, 0, core::JobState::kQueued});
  core::Worker worker;
  worker.id = WorkerId("w");
  transaction.workers.push_back(worker);
  core::Attempt attempt;
  attempt.job_id = job.id;
  attempt.number = 2;
  attempt.command = "run";
  core::Rank rank;
  rank.worker_id = worker.id;
  rank.slot = 0;
  attempt.ranks.push_back(rank);
  transaction.attempts.push_back(attempt);
  return transaction;
}

class RestoreTest : public ::testing::Test {
 protected:
  RestoreTest() {
    const auto store = *store::OpenSqliteStore(folder_.File("old/longspan.db"));
    EXPECT_TRUE(store->Commit(RunningJob()).ok());
    EXPECT_TRUE(store->Backup(backup_).ok());
  }
  testing::TemporaryFolder folder_;
  const std::string backup_ = folder_.File("backup.db");
  const std::string target_ = folder_.File("new");
};

TEST_F(RestoreTest, GivesUpTheAttemptsOfThatTime) {
  const absl::StatusOr<Restored> restored = RestoreBackup(backup_, target_);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->jobs, 1);
  EXPECT_EQ(restored->unfinished, 1);
  const core::StoredState state = *(*store::OpenSqliteStore(target_ + "/longspan.db"))->Load();
  ASSERT_EQ(state.jobs.size(), 1u);
  EXPECT_EQ(state.jobs[0].job.state, core::JobState::kRecovering);
  EXPECT_EQ(state.jobs[0].job.attempt, 1002);
  EXPECT_LT(state.jobs[0].attempts.at(0).end_time, core::kNever);
  EXPECT_FALSE(state.jobs[0].attempts.at(0).ranks.at(0).released) << "the worker may still run it";
}

TEST_F(RestoreTest, OverwritesNothing) {
  ASSERT_TRUE(RestoreBackup(backup_, target_).ok());
  EXPECT_EQ(RestoreBackup(backup_, target_).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(RestoreTest, ADamagedOrMissingBackupLeavesNothing) {
  EXPECT_EQ(RestoreBackup(folder_.File("none.db"), target_).status().code(), absl::StatusCode::kNotFound);
  {
    std::fstream file(backup_, std::ios::in | std::ios::out | std::ios::binary);
    file << std::string(4096, 'z');
  }
  EXPECT_EQ(RestoreBackup(backup_, target_).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(fs::exists(target_ + "/longspan.db"));
}

}  // namespace
}  // namespace longspan
