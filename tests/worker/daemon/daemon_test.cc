// The whole daemon against a fleet service in this process, with shell scripts and the fake trainer for ranks.
#include "worker/daemon/daemon.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <thread>

#include "tests/test_paths.h"
#include "tests/worker/daemon/fake_fleet.h"
#include "tests/worker/daemon/scratch.h"
#include "worker/daemon/inventory.h"

namespace longspan::worker {
namespace {

using ::longspan::testing::BinDir;
using ::longspan::testing::Scratch;
using ::longspan::testing::WaitUntilGone;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kHello[] = "echo '{\"type\":\"hello\",\"protocol\":1,\"pid\":1,\"rank\":0,\"version\":\"1\"}' >&3\n";
constexpr char kDone[] = "echo '{\"type\":\"done\"}' >&3\n";

class DaemonTest : public ::testing::Test {
 protected:
  DaemonTest() { std::filesystem::create_directories(scratch_ / "storage/jobs/job-1"); }
  ~DaemonTest() override { StopDaemon(); }

  void StartDaemon(const std::string& trainer) {
    state_dir_ = *StateDir::Open(scratch_ / "state");
    DaemonOptions options;
    options.worker_id = "worker-a";
    options.incarnation_id = "incarnation-1";
    options.advertise_address = "127.0.0.1";
    options.trainer = trainer;
    options.storage = scratch_ / "storage";
    options.slots = slots_;
    options.labels = {{"zone", "test"}};
    options.supervisor.kill_grace = absl::Milliseconds(200);
    options.supervisor.progress_interval = absl::Milliseconds(20);
    options.schedule.backoff_max = absl::Milliseconds(400);
    options.uploader.interval = absl::Milliseconds(20);
    options.uploader.backoff_max = absl::Milliseconds(200);
    options.leave_grace = absl::Seconds(5);
    options.leave_report_max = absl::Seconds(2);
    daemon_ =
        std::make_unique<Daemon>(options, grpc::CreateChannel(fleet_.address(), grpc::InsecureChannelCredentials()),
                                 state_dir_.get(), &metrics_);
    thread_ = std::thread([this] { EXPECT_TRUE(daemon_->Run().ok()); });
  }

  void StopDaemon() {
    if (!thread_.joinable()) return;
    daemon_->Leave();
    daemon_->Leave();
    thread_.join();
    daemon_.reset();
  }

  v1::DesiredRank Desired(const RankKey& key, int64_t world_size = 1) {
    v1::DesiredRank desired;
    desired.set_job_id(key.job_id);
    desired.set_attempt(key.attempt);
    desired.set_rank(key.rank);
    desired.set_world_size(world_size);
    desired.set_slot(key.rank);
    desired.set_command("run");
    desired.set_spec_json(R"({"name": "test"})");
    desired.set_folder(scratch_ / "storage/jobs/job-1");
    desired.set_action(v1::DesiredRank::ACTION_RUN);
    desired.set_threads(2);
    desired.mutable_stop_grace()->set_seconds(10);
    return desired;
  }

  // The pid that a script wrote as the first line of its output.
  pid_t PidOf(const RankKey& key) {
    EXPECT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Log(key).find('\n') != std::string::npos; }));
    return std::stoi(fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Log(key); }));
  }

  bool WaitForExit(const RankKey& key) {
    return fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Exited(key); });
  }
  v1::RankExit ExitOf(const RankKey& key) {
    return fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Report(key).exit(); });
  }

  Scratch scratch_;
  FakeFleet fleet_;
  WorkerMetrics metrics_;
  std::unique_ptr<StateDir> state_dir_;
  std::unique_ptr<Daemon> daemon_;
  std::thread thread_;
  std::vector<v1::Slot> slots_ = CpuSlots(2, 1 << 30);
  const RankKey key_{"job-1", 1, 0};
  const std::string spec_ = R"({"name": "test", "model": {"path": "/models/none"}, "data": {"sources": ["/data/none"]},
      "context_length": 64, "training": {"steps": 20, "global_batch": 2}, "resources": {"slots": 2},
      "labels": {"fake.step_ms": "1"}})";
};

TEST_F(DaemonTest, TellsWhoItIsAndWhatItHas) {
  StartDaemon("/bin/true");
  ASSERT_TRUE(fleet_.WaitFor([](const FakeFleet& fleet) { return fleet.newest().sequence() > 0; }));
  const v1::SynchronizeRequest request = fleet_.Locked([](const FakeFleet& fleet) { return fleet.newest(); });
  EXPECT_EQ(request.worker_id(), "worker-a");
  EXPECT_EQ(request.incarnation_id(), "incarnation-1");
  EXPECT_EQ(request.slots_size(), 2);
  EXPECT_EQ(request.slots(1).memory_bytes(), 1 << 29);
  EXPECT_EQ(request.labels().at("zone"), "test");
  EXPECT_FALSE(request.leaving());
}

TEST_F(DaemonTest, RunsARankWithItsCommandLineAndUploadsItsLog) {
  StartDaemon(scratch_.Script(
      "trainer", std::string(kHello) + "echo \"$@\"\ncat \"$2\"\necho \" $OMP_NUM_THREADS\" >&2\n" + kDone));
  v1::DesiredRank desired = Desired(key_);
  desired.set_resume_from("step-00000010.attempt-1");
  desired.set_manifest_sha256("ab12");
  fleet_.Want(desired);
  ASSERT_TRUE(WaitForExit(key_));
  const v1::RankExit exit = ExitOf(key_);
  EXPECT_EQ(exit.exit_code(), 0);
  EXPECT_EQ(exit.failure_class(), v1::FAILURE_CLASS_UNSPECIFIED);
  ASSERT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Log(key_).ends_with(" 2\n"); }));
  const std::string log = fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Log(key_); });
  EXPECT_THAT(log,
              HasSubstr(" --work " + scratch_ / "storage/jobs/job-1" +
                        " --job job-1 --attempt 1 --rank 0 --world-size 1 --lines-out-fd 3 --lines-in-fd 4 --threads 2 "
                        "--advertise-address 127.0.0.1 --resume-from step-00000010.attempt-1 --slot-memory 536870912 "
                        "--device cpu --manifest-sha256 ab12\n"));
  EXPECT_THAT(log, HasSubstr("run " + state_dir_->path() + "/ranks/job-1.attempt-1.rank-0/spec.json"));
  EXPECT_THAT(log, HasSubstr("\n{\"name\": \"test\"} 2\n"));
  // The acknowledged end is not reported again, and does not start again though it is still wanted.
  ASSERT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return !fleet.InNewestReport(key_); }));
}

TEST_F(DaemonTest, ARankSeesTheGpuOfItsSlotAndNoOther) {
  slots_ = GpuSlots({{"NVIDIA H200", "GPU-aaaa", 150'000'000'000, "9.0"}, {"NVIDIA H200", "GPU-bbbb", 1000, "9.0"}});
  StartDaemon(scratch_.Script(
      "trainer", std::string(kHello) + "echo \"$@\"\necho \"sees [$CUDA_VISIBLE_DEVICES]\" >&2\n" + kDone));
  const RankKey second{"job-1", 1, 1};
  fleet_.Want(Desired(second, 2));
  ASSERT_TRUE(WaitForExit(second));
  ASSERT_TRUE(
      fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Log(second).find("sees [") != std::string::npos; }));
  const std::string log = fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Log(second); });
  EXPECT_THAT(log, HasSubstr(" --slot-memory 1000 --device cuda"));
  EXPECT_THAT(log, HasSubstr("sees [GPU-bbbb]\n"));
  const v1::SynchronizeRequest request = fleet_.Locked([](const FakeFleet& fleet) { return fleet.newest(); });
  EXPECT_EQ(request.slots(0).device(), "NVIDIA H200");
  EXPECT_EQ(request.slots(0).uuid(), "GPU-aaaa");
  EXPECT_EQ(request.slots(0).memory_bytes(), 150'000'000'000);
  EXPECT_EQ(request.slots(0).compute_capability(), "9.0");
}

TEST_F(DaemonTest, AFailureBringsItsWordsAndTheTailOfTheLog) {
  StartDaemon(scratch_.Script(
      "trainer",
      "echo 'the last line of the log'\n"
      "echo '{\"type\":\"failed\",\"failure_class\":\"user\",\"message\":\"corpus.txt is empty\"}' >&3\n"
      "exit 10\n"));
  fleet_.Want(Desired(key_));
  ASSERT_TRUE(WaitForExit(key_));
  EXPECT_EQ(ExitOf(key_).failure_class(), v1::FAILURE_CLASS_USER);
  EXPECT_EQ(ExitOf(key_).message(), "corpus.txt is empty");
  EXPECT_EQ(ExitOf(key_).log_tail(), "the last line of the log\n");
}

TEST_F(DaemonTest, AKilledRankIsAnInfrastructureFailure) {
  StartDaemon(scratch_.Script("trainer", "kill -9 $$\n"));
  fleet_.Want(Desired(key_));
  ASSERT_TRUE(WaitForExit(key_));
  EXPECT_EQ(ExitOf(key_).signal(), SIGKILL);
  EXPECT_EQ(ExitOf(key_).failure_class(), v1::FAILURE_CLASS_INFRASTRUCTURE);
  EXPECT_EQ(ExitOf(key_).message(), "killed by signal 9 (out of memory?)");
}

TEST_F(DaemonTest, ATrainerThatCannotStartOrAFolderElsewhereIsAFailedRank) {
  StartDaemon("/nowhere/longspan-trainer");
  fleet_.Want(Desired(key_));
  ASSERT_TRUE(WaitForExit(key_));
  EXPECT_THAT(ExitOf(key_).message(), HasSubstr("cannot execute /nowhere/longspan-trainer"));
  const RankKey other{"job-2", 1, 0};
  v1::DesiredRank desired = Desired(other);
  desired.set_folder(scratch_ / "storage/../elsewhere");
  fleet_.Want(desired);
  ASSERT_TRUE(WaitForExit(other));
  EXPECT_THAT(ExitOf(other).message(), HasSubstr("is not below this worker's storage"));
}

TEST_F(DaemonTest, LostAnswersChangeNothing) {
  const std::string go = scratch_ / "go";
  mkfifo(go.c_str(), 0600);
  StartDaemon(
      scratch_.Script("trainer", std::string(kHello) + "echo \"$$ started\"\nread line < " + go + "\n" + kDone));
  fleet_.LoseAnswers(3);
  fleet_.Want(Desired(key_));
  ASSERT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Running(key_); }));
  fleet_.LoseAnswers(3);
  std::ofstream(go) << "go\n";
  ASSERT_TRUE(WaitForExit(key_));
  ASSERT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return !fleet.InNewestReport(key_); }));
  const std::string log = fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Log(key_); });
  EXPECT_EQ(log.find("started"), log.rfind("started")) << "started twice: " << log;
}

TEST_F(DaemonTest, AWantedStopGivesTheRankTimeForACheckpoint) {
  StartDaemon(scratch_.Script(
      "trainer", std::string(kHello) + "while read line <&4; do case \"$line\" in *stop*) break;; esac; done\n"
                                       "echo '{\"type\":\"checkpoint\",\"name\":\"step-00000001.attempt-1\",\"step\":1,"
                                       "\"manifest_sha256\":\"ab\",\"size_bytes\":5,\"seconds\":0.1}' >&3\n"
                                       "echo '{\"type\":\"done\",\"stopped\":true}' >&3\nexit 40\n"));
  fleet_.Want(Desired(key_));
  ASSERT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Running(key_); }));
  v1::DesiredRank desired = Desired(key_);
  desired.set_action(v1::DesiredRank::ACTION_STOP);
  fleet_.Want(desired);
  ASSERT_TRUE(WaitForExit(key_));
  EXPECT_TRUE(ExitOf(key_).stopped());
  EXPECT_EQ(ExitOf(key_).exit_code(), 40);
}

// A script that hears no SIGTERM and says its pid.
const std::string kDeaf = std::string(kHello) + "trap '' TERM\necho $$\nwhile :; do sleep 600; done\n";

TEST_F(DaemonTest, ARankThatIsNoLongerWantedIsKilledEvenADeafOne) {
  StartDaemon(scratch_.Script("trainer", kDeaf));
  fleet_.Want(Desired(key_));
  const pid_t pid = PidOf(key_);
  fleet_.Unwant(key_);
  ASSERT_TRUE(WaitForExit(key_));
  EXPECT_EQ(ExitOf(key_).signal(), SIGKILL);
  EXPECT_TRUE(WaitUntilGone(pid));
}

TEST_F(DaemonTest, AFencedAttemptIsKilledAndForgotten) {
  StartDaemon(scratch_.Script("trainer", kDeaf));
  fleet_.Want(Desired(key_));
  const pid_t pid = PidOf(key_);
  fleet_.Fence(key_);
  EXPECT_TRUE(WaitUntilGone(pid));
  EXPECT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return !fleet.InNewestReport(key_); }));
  EXPECT_FALSE(fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Exited(key_); }));
}

TEST_F(DaemonTest, WithoutTheServerItsRanksDieWhenTheLeaseEndsEvenStoppedOnes) {
  fleet_.SetLease(absl::Seconds(1));  // above the fake's long poll
  StartDaemon(scratch_.Script("trainer", kDeaf));
  fleet_.Want(Desired(key_));
  const pid_t pid = PidOf(key_);
  kill(pid, SIGSTOP);
  fleet_.SetUnreachable(true);
  EXPECT_TRUE(WaitUntilGone(pid));
  fleet_.SetUnreachable(false);
  ASSERT_TRUE(WaitForExit(key_));
  EXPECT_EQ(ExitOf(key_).message(), "killed by its worker: the lease ran out");
}

TEST_F(DaemonTest, AGangOfTwoMeetsAndRunsToTheEnd) {
  StartDaemon((BinDir() / "longspan-fake-trainer").string());
  const RankKey second{"job-1", 1, 1};
  for (const RankKey& key : {key_, second}) {
    v1::DesiredRank desired = Desired(key, 2);
    desired.set_spec_json(spec_);
    fleet_.Want(desired);
  }
  ASSERT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return !fleet.Report(key_).store_address().empty(); }))
      << fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Log(key_) + fleet.Report(key_).exit().message(); });
  v1::DesiredRank desired = Desired(second, 2);
  desired.set_spec_json(spec_);
  desired.set_store_address(fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Report(key_).store_address(); }));
  fleet_.Want(desired);
  ASSERT_TRUE(WaitForExit(key_));
  ASSERT_TRUE(WaitForExit(second));
  EXPECT_EQ(ExitOf(key_).exit_code(), 0) << ExitOf(key_).message() << ExitOf(key_).log_tail();
  EXPECT_EQ(ExitOf(second).exit_code(), 0) << ExitOf(second).message() << ExitOf(second).log_tail();
  EXPECT_GE(fleet_.Locked([&](const FakeFleet& fleet) { return fleet.samples(key_); }), 20);
  EXPECT_THAT(metrics_.Scrape(), HasSubstr("longspan_train_loss{job_id=\"job-1\"}"));
  EXPECT_THAT(metrics_.Scrape(), HasSubstr("longspan_train_tokens_total{job_id=\"job-1\"}"));
}

TEST_F(DaemonTest, GarbageOnTheLinePipeIsCountedAndHarmless) {
  StartDaemon(scratch_.Script("trainer", std::string(kHello) +
                                             "echo garbage >&3\necho '{\"type\":\"progress\"}' >&3\n"
                                             "echo '{\"type\":\"of the future\"}' >&3\n"
                                             "head -c 200000 /dev/zero | tr '\\0' x >&3\necho >&3\n" +
                                             kDone));
  fleet_.Want(Desired(key_));
  ASSERT_TRUE(WaitForExit(key_));
  EXPECT_EQ(ExitOf(key_).exit_code(), 0);
  EXPECT_EQ(ExitOf(key_).failure_class(), v1::FAILURE_CLASS_UNSPECIFIED);
  EXPECT_THAT(metrics_.Scrape(), HasSubstr("longspan_worker_malformed_lines_total 3\n"));
}

TEST_F(DaemonTest, AFloodOfOutputWithoutAServerNeverBlocksTheTrainerAndArrivesWholeLater) {
  const std::string ready = scratch_ / "written";
  mkfifo(ready.c_str(), 0600);
  StartDaemon(scratch_.Script("trainer", std::string(kHello) +
                                             "read line <&4\ni=0\nwhile [ $i -lt 400 ]; do i=$((i+1)); "
                                             "printf '%05d' $i; head -c 9994 /dev/zero | tr '\\0' x; echo; done\n"
                                             "echo end > " +
                                             ready + "\n" + kDone));
  fleet_.StoreAtMostPerCall(1'000'000);
  fleet_.Want(Desired(key_));
  ASSERT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Running(key_); }));
  fleet_.SetUnreachable(true);
  // The script gets here only when all four megabytes have been taken from it.
  EXPECT_EQ(longspan::testing::ReadWholeFile(ready), "end\n");
  fleet_.SetUnreachable(false);
  ASSERT_TRUE(WaitForExit(key_));
  ASSERT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Log(key_).size() >= 4'000'000; }));
  const std::string log = fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Log(key_); });
  ASSERT_EQ(log.size(), 4'000'000u);
  for (int i = 0; i < 400; ++i) ASSERT_EQ(std::stoi(log.substr(static_cast<size_t>(i) * 10'000, 5)), i + 1);
}

TEST_F(DaemonTest, LeavingStopsRanksInOrderAndSaysSo) {
  StartDaemon(scratch_.Script(
      "trainer", std::string(kHello) + "while read line <&4; do case \"$line\" in *stop*) break;; esac; done\n"
                                       "echo stopping\necho '{\"type\":\"done\",\"stopped\":true}' >&3\nexit 40\n"));
  fleet_.Want(Desired(key_));
  ASSERT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Running(key_); }));
  daemon_->Leave();
  thread_.join();
  EXPECT_TRUE(fleet_.Locked([&](const FakeFleet& fleet) { return fleet.newest().leaving(); }));
  EXPECT_TRUE(ExitOf(key_).stopped());
  EXPECT_EQ(fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Log(key_); }), "stopping\n");
}

TEST_F(DaemonTest, LeavingWithoutAServerEndsInBoundedTime) {
  StartDaemon(scratch_.Script("trainer", kDeaf));
  fleet_.Want(Desired(key_));
  const pid_t pid = PidOf(key_);
  fleet_.SetUnreachable(true);
  StopDaemon();
  EXPECT_TRUE(WaitUntilGone(pid));
}

TEST_F(DaemonTest, AnIdleDaemonDoesNotFloodTheServer) {
  StartDaemon("/bin/true");
  ASSERT_TRUE(fleet_.WaitFor([](const FakeFleet& fleet) { return fleet.calls() >= 2; }));
  const auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(fleet_.WaitFor([](const FakeFleet& fleet) { return fleet.calls() >= 4; }));
  EXPECT_GE(std::chrono::steady_clock::now() - start, FakeFleet::kHold);
}

}  // namespace
}  // namespace longspan::worker
