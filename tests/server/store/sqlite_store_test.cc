#include "server/store/sqlite_store.h"
#include "server/store/rows.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <limits>

#include "server/core/core.h"
#include "server/store/database_file.h"
#include "server/store/row_json.h"
#include "tests/server/fakes/fake_worker.h"
#include "tests/temporary_folder.h"

namespace longspan::store {
namespace {

using ::longspan::testing::FakeWorker;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

core::Job MakeJob(const std::string& name) {
  core::Job job;
  job.id = JobId("job-" + name);
  job.request_id = "request-" + name;
  job.content_hash = "hash";
  job.spec_json = "{\"name\": \"" + name + "\"}";
  job.name = name;
  job.queue = "default";
  job.labels = {{"team", "a \"quoted\" ümlaut"}};
  job.submit_time = absl::FromUnixNanos(123456789);
  job.version = 1;
  job.reason = "SUBMITTED";
  return job;
}

core::Transaction Insert(const core::Job& job) {
  core::Transaction transaction;
  transaction.jobs.push_back({job, 0, core::JobState::kQueued});
  return transaction;
}

// A core on a real store, with one worker, so that the rows are those of a real job.
class Server {
 public:
  explicit Server(Store& store) : store_(store), worker_(WorkerId("w"), 2) {
    core::CoreOptions options;
    options.jobs_folder = "/jobs";
    core_ = std::make_unique<core::Core>(options);
    Step(core::Restarted{*store.Load()});
  }
  void Step(const core::Event& event) {
    const core::Effects effects = core_->Step(event, now_);
    const absl::Status status = store_.Commit(effects.transaction);
    ASSERT_TRUE(status.ok()) << Message(status);
    reply_ = effects.reply;
  }
  void Sync() {
    Step(worker_.MakeReport(now_));
    worker_.Apply(std::get<core::ReportReply>(reply_), core_->Desired(worker_.id()), now_);
    Step(core::Tick{});
    now_ += absl::Milliseconds(1);
  }
  FakeWorker& worker() { return worker_; }
  core::Core& core() { return *core_; }

  // Up to a running gang of two with a sample, a checkpoint, an evaluation and an artifact.
  void RunAJob() {
    Sync();
    core::Job job = MakeJob("a");
    job.gang_sizes = {2};
    job.version = 0;
    Step(core::JobSubmitted{job});
    Step(core::Tick{});
    Sync();
    worker_.Exit({job.id, 1, 0}, {}, now_);
    Sync();
    Sync();
    for (auto& [key, rank] : worker_.ranks()) rank.report.state = core::RankState::kRunning;
    const FakeWorker::Key rank_zero(job.id, 2, 0);
    worker_.AddSample(rank_zero, core::Phase::kTrain, 1, now_);
    worker_.AddCheckpoint(rank_zero, "step-1", 1);
    core::RankReport& report = worker_.ranks().at(rank_zero).report;
    report.evaluations.push_back(
        {"base", 256, "windows", std::numeric_limits<double>::infinity(), std::nan(""), 99, 0});
    report.artifacts.push_back({"adapter", "/jobs/job-a/adapter", "a line"});
    Sync();
    Sync();
  }

 private:
  Store& store_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
  FakeWorker worker_;
  std::unique_ptr<core::Core> core_;
  core::Reply reply_;
};

class SqliteStoreTest : public ::testing::Test {
 protected:
  std::unique_ptr<Store> Open() {
    absl::StatusOr<std::unique_ptr<Store>> store = OpenSqliteStore(path_);
    EXPECT_TRUE(store.ok()) << Message(store.status());
    return *std::move(store);
  }
  testing::TemporaryFolder folder_;
  const std::string path_ = folder_.File("new/folder/server.db");
};

TEST_F(SqliteStoreTest, GivesBackEverythingAfterReopening) {
  core::DesiredRanks desired;
  core::JobView before;
  {
    const auto store = Open();
    Server server(*store);
    server.RunAJob();
    desired = server.core().Desired(WorkerId("w"));
    before = *server.core().ViewJob(JobId("job-a"));
  }
  const auto store = Open();
  const core::StoredState state = *store->Load();
  ASSERT_EQ(state.jobs.size(), 1u);
  ASSERT_EQ(state.workers.size(), 1u);
  const core::StoredState::JobRows& rows = state.jobs[0];
  EXPECT_EQ(rows.job.state, core::JobState::kRunning);
  EXPECT_EQ(rows.job.labels, MakeJob("a").labels);
  EXPECT_EQ(rows.job.version, before.job.version);
  EXPECT_EQ(rows.job.submit_time, before.job.submit_time);
  EXPECT_EQ(rows.job.max_run_time, absl::InfiniteDuration());
  EXPECT_EQ(rows.job.end_time, core::kNever);
  EXPECT_EQ(rows.job.best_step[2], 1);
  ASSERT_EQ(rows.attempts.size(), 2u);
  ASSERT_EQ(rows.attempts[1].ranks.size(), 2u);
  EXPECT_EQ(rows.attempts[1].ranks[1].state, core::RankState::kRunning);
  ASSERT_EQ(rows.checkpoints.size(), 1u);
  EXPECT_EQ(rows.checkpoints[0].manifest_sha256, "hash-of-step-1");
  ASSERT_EQ(rows.evaluations.size(), 1u);
  EXPECT_TRUE(std::isinf(rows.evaluations[0].perplexity));
  EXPECT_TRUE(std::isnan(rows.evaluations[0].loss));
  ASSERT_EQ(rows.artifacts.size(), 1u);
  EXPECT_EQ(rows.artifacts[0].excerpt, "a line");
  EXPECT_EQ(rows.newest_sample->values.at("loss"), 0.5);
  EXPECT_EQ(state.workers[0].slots.size(), 2u);
  EXPECT_EQ(state.workers[0].incarnation_id, "w-1");

  // What should exist follows from the rows alone.
  core::Core core(core::CoreOptions{.jobs_folder = "/jobs"});
  core.Step(core::Restarted{state}, absl::FromUnixSeconds(2000));
  const auto without_start = [](const std::string& fingerprint) {
    return fingerprint.substr(0, fingerprint.rfind('-'));
  };
  EXPECT_EQ(without_start(core.Desired(WorkerId("w")).fingerprint), without_start(desired.fingerprint));
  EXPECT_EQ(desired.ranks.size(), 2u);
}

TEST_F(SqliteStoreTest, ReadsEventsAndSamplesFromASequence) {
  const auto store = Open();
  Server server(*store);
  server.RunAJob();
  const std::vector<core::JobEvent> all = *store->ReadEvents(JobId("job-a"), 0, 100);
  ASSERT_GE(all.size(), 4u);
  EXPECT_EQ(all[0].reason, "JOB_SUBMITTED");
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i].sequence, static_cast<int64_t>(i) + 1);
  const std::vector<core::JobEvent> two = *store->ReadEvents(JobId("job-a"), 1, 2);
  ASSERT_EQ(two.size(), 2u);
  EXPECT_EQ(two[0].sequence, 2);
  EXPECT_EQ(store->ReadSamples(JobId("job-a"), 0, 100)->size(), 1u);
  EXPECT_TRUE(store->ReadSamples(JobId("job-a"), 1, 100)->empty());
  EXPECT_TRUE(store->ReadEvents(JobId("job-b"), 0, 100)->empty());
}

TEST_F(SqliteStoreTest, AWrongGuardStoresNothingOfTheTransaction) {
  const auto store = Open();
  ASSERT_TRUE(store->Commit(Insert(MakeJob("a"))).ok());
  core::Transaction transaction = Insert(MakeJob("b"));
  core::JobWrite write{MakeJob("a"), 1, core::JobState::kRunning};
  transaction.jobs.push_back(write);
  EXPECT_EQ(store->Commit(transaction).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(store->Load()->jobs.size(), 1u);
  // The store is usable afterwards.
  EXPECT_TRUE(store->Commit(Insert(MakeJob("b"))).ok());
}

TEST_F(SqliteStoreTest, ASlotCannotHaveTwoOwners) {
  const auto store = Open();
  core::Transaction transaction = Insert(MakeJob("a"));
  transaction.jobs.push_back({MakeJob("b"), 0, core::JobState::kQueued});
  core::Worker worker;
  worker.id = WorkerId("w");
  transaction.workers.push_back(worker);
  for (const char* id : {"job-a", "job-b"}) {
    core::Attempt attempt;
    attempt.job_id = JobId(id);
    attempt.number = 1;
    core::Rank rank;
    rank.worker_id = worker.id;
    rank.slot = 0;
    attempt.ranks.push_back(rank);
    transaction.attempts.push_back(attempt);
  }
  EXPECT_FALSE(store->Commit(transaction).ok());
  transaction.attempts[0].ranks[0].released = true;
  EXPECT_TRUE(store->Commit(transaction).ok());
}

TEST_F(SqliteStoreTest, ASecondServerIsRefusedAndToldWhoHoldsIt) {
  auto store = Open();
  const absl::StatusOr<std::unique_ptr<Store>> second = OpenSqliteStore(path_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(second.status()), HasSubstr("process " + std::to_string(getpid())));
  store.reset();
  EXPECT_TRUE(OpenSqliteStore(path_).ok());
}

// A child commits jobs one by one and tells each acknowledged one through a pipe, until it is killed in the middle.
// Every job that it told is there afterwards, none is there by half, and the lock is free.
TEST_F(SqliteStoreTest, KillLosesNoAcknowledgedCommit) {
  for (int round = 0; round < 5; ++round) {
    const std::string path = folder_.File("round" + std::to_string(round) + "/db");
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const absl::StatusOr<std::unique_ptr<Store>> store = OpenSqliteStore(path);
      for (int32_t i = 0; store.ok(); ++i) {
        core::Transaction transaction = Insert(MakeJob(std::to_string(i)));
        for (int64_t e = 1; e <= 20; ++e) {
          core::JobEvent event;
          event.sequence = e;
          event.message = std::string(1000, 'x');
          transaction.events.push_back({transaction.jobs[0].job.id, event});
        }
        if (!(*store)->Commit(transaction).ok()) break;
        if (write(ends[1], &i, sizeof(i)) != sizeof(i)) break;
      }
      _exit(1);
    }
    close(ends[1]);
    int32_t acknowledged = -1;
    for (int i = 0; i <= 3 + round * 7; ++i)
      ASSERT_EQ(read(ends[0], &acknowledged, sizeof(acknowledged)), 4) << "no commit came";
    kill(child, SIGKILL);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
    while (read(ends[0], &acknowledged, sizeof(acknowledged)) == 4) {
    }
    close(ends[0]);

    const absl::StatusOr<std::unique_ptr<Store>> store = OpenSqliteStore(path);
    ASSERT_TRUE(store.ok()) << Message(store.status());
    const core::StoredState state = *(*store)->Load();
    ASSERT_GT(static_cast<int32_t>(state.jobs.size()), acknowledged);
    for (const core::StoredState::JobRows& rows : state.jobs) {
      EXPECT_EQ((*store)->ReadEvents(rows.job.id, 0, 100)->size(), 20u);
    }
  }
}

TEST_F(SqliteStoreTest, BacksUpWhileInUse) {
  const auto store = Open();
  ASSERT_TRUE(store->Commit(Insert(MakeJob("a"))).ok());
  const std::string copy = folder_.File("copy.db");
  ASSERT_TRUE(store->Backup(copy).ok());
  EXPECT_EQ(store->Backup(copy).code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(store->Commit(Insert(MakeJob("b"))).ok());
  const std::string second = folder_.File("second.db");
  ASSERT_TRUE(BackupSqliteDatabase(path_, second).ok());
  EXPECT_EQ((*OpenSqliteStore(copy))->Load()->jobs.size(), 1u);
  EXPECT_EQ((*OpenSqliteStore(second))->Load()->jobs.size(), 2u);
}

TEST_F(SqliteStoreTest, ADeletedJobLeavesNothing) {
  const auto store = Open();
  Server server(*store);
  server.RunAJob();
  core::Transaction transaction;
  transaction.deleted_jobs.push_back(JobId("job-a"));
  ASSERT_TRUE(store->Commit(transaction).ok());
  EXPECT_TRUE(store->Load()->jobs.empty());
  EXPECT_TRUE(store->ReadEvents(JobId("job-a"), 0, 100)->empty());
  EXPECT_TRUE(store->ReadSamples(JobId("job-a"), 0, 100)->empty());
  // The request id may be used again.
  EXPECT_TRUE(store->Commit(Insert(MakeJob("a"))).ok());
}

// The newest are whole, older ones thinner; what is read from a sequence is what is left behind it.
TEST_F(SqliteStoreTest, OldSamplesAreThinned) {
  const auto store = Open();
  ASSERT_TRUE(store->Commit(Insert(MakeJob("a"))).ok());
  constexpr int64_t kSamples = 45'000;
  for (int64_t sequence = 1; sequence <= kSamples;) {
    core::Transaction transaction;
    for (int i = 0; i < 500; ++i, ++sequence) {
      core::Sample sample;
      sample.sequence = sample.step = sequence;
      transaction.samples.push_back({JobId("job-a"), sample});
    }
    ASSERT_TRUE(store->Commit(transaction).ok());
  }
  const std::vector<core::Sample> left = *store->ReadSamples(JobId("job-a"), 0, kSamples);
  const auto count = [&](int64_t from, int64_t to) {
    return std::count_if(left.begin(), left.end(),
                         [&](const core::Sample& sample) { return sample.sequence > from && sample.sequence <= to; });
  };
  EXPECT_EQ(count(kSamples - kSamplesWhole, kSamples), kSamplesWhole);
  EXPECT_EQ(count(20'000, 42'000), 2'200);
  EXPECT_EQ(count(0, 20'000), 200);
  EXPECT_EQ(left.back().step, kSamples);
  EXPECT_EQ(store->ReadSamples(JobId("job-a"), 100, 1)->front().sequence, 200);
  EXPECT_EQ(store->Load()->jobs.front().newest_sample->sequence, kSamples);
}

TEST_F(SqliteStoreTest, TellsHowMuchTheDiskHasLeft) { EXPECT_GT(*Open()->FreeBytes(), 0); }

TEST_F(SqliteStoreTest, ADamagedFileIsNotOpened) {
  {
    Open();
  }
  std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(0);
  file << std::string(4096, 'z');
  file.close();
  EXPECT_EQ(OpenSqliteStore(path_).status().code(), absl::StatusCode::kDataLoss);
}

TEST(DatabaseFileTest, KnowsNetworkFileSystems) {
  EXPECT_TRUE(IsNetworkFileSystem(0x6969));
  EXPECT_TRUE(IsNetworkFileSystem(static_cast<int32_t>(0xFF534D42)));  // f_type is signed on some machines
  EXPECT_FALSE(IsNetworkFileSystem(0xEF53));                           // ext4
  EXPECT_FALSE(IsNetworkFileSystem(0x01021994));                       // tmpfs
}

TEST(RowJsonTest, KeepsNonFiniteNumbersAndSurvivesBadText) {
  const std::map<std::string, double> values = {
      {"a", std::nan("")}, {"b", -std::numeric_limits<double>::infinity()}, {"c", 0.1}};
  EXPECT_EQ(ToJson(values), R"({"a":"nan","b":"-inf","c":0.1})");
  std::map<std::string, double> read;
  ASSERT_TRUE(FromJson(ToJson(values), read).ok());
  EXPECT_TRUE(std::isnan(read["a"]));
  EXPECT_EQ(read["c"], 0.1);
  EXPECT_FALSE(ToJson(std::vector<std::string>{"\xff"}).empty());
  std::vector<core::Slot> slots;
  EXPECT_EQ(FromJson("[{}]", slots).code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace longspan::store
