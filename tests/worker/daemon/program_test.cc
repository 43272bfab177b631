// The longspan-worker program: flags, its port file, its lock, its signals, and what happens to its ranks when it is
// killed.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <spawn.h>
#include <sys/wait.h>

#include <csignal>
#include <nlohmann/json.hpp>

#include "tests/test_paths.h"
#include "tests/worker/daemon/fake_fleet.h"
#include "tests/worker/daemon/scratch.h"
#include "worker/daemon/trainer_check.h"

extern char** environ;

namespace longspan::worker {
namespace {

using ::longspan::testing::BinDir;
using ::longspan::testing::ReadWholeFile;
using ::longspan::testing::Scratch;
using ::longspan::testing::WaitUntilGone;
using ::testing::AllOf;
using ::testing::HasSubstr;

class ProgramTest : public ::testing::Test {
 protected:
  ProgramTest() { std::filesystem::create_directories(scratch_ / "storage/jobs/job-1"); }
  ~ProgramTest() override {
    for (const pid_t pid : started_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }

  // Its standard error goes to the file `log`.
  pid_t Start(const std::string& log, std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {(BinDir() / "longspan-worker").string(),
                                          "--server",
                                          fleet_.address(),
                                          "--storage",
                                          scratch_ / "storage",
                                          "--state-dir",
                                          scratch_ / "state",
                                          "--name",
                                          "worker-a",
                                          "--trainer",
                                          trainer_,
                                          "--port-file",
                                          scratch_ / "port",
                                          "--kill-grace-seconds",
                                          "0.2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, (scratch_ / log).c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    pid_t pid = -1;
    EXPECT_EQ(posix_spawn(&pid, pointers[0], &actions, nullptr, pointers.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    started_.push_back(pid);
    return pid;
  }

  // Exit code, or -signal.
  int WaitForEnd(pid_t pid) {
    if (!WaitUntilGone(pid)) return -1000;
    int status = 0;
    waitpid(pid, &status, 0);
    std::erase(started_, pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  void WantRank() {
    v1::DesiredRank desired;
    desired.set_job_id(key_.job_id);
    desired.set_attempt(key_.attempt);
    desired.set_world_size(1);
    desired.set_command("run");
    desired.set_spec_json("{}");
    desired.set_folder(scratch_ / "storage/jobs/job-1");
    desired.set_action(v1::DesiredRank::ACTION_RUN);
    fleet_.Want(desired);
  }
  pid_t PidOfRank() {
    EXPECT_TRUE(
        fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Log(key_).find('\n') != std::string::npos; }));
    return std::stoi(fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Log(key_); }));
  }

  Scratch scratch_;
  FakeFleet fleet_;
  const RankKey key_{"job-1", 1, 0};
  std::vector<pid_t> started_;
  // Deaf to SIGTERM; ends when it is told to stop.
  std::string trainer_ =
      scratch_.Script("trainer",
                      "trap '' TERM\necho $$\nwhile read line <&4; do case \"$line\" in *stop*) break;; esac; done\n"
                      "echo '{\"type\":\"done\",\"stopped\":true}' >&3\nexit 40\n");
};

TEST_F(ProgramTest, WritesThePortAtWhichItServesMetrics) {
  Start("log");
  ASSERT_TRUE(fleet_.WaitFor([](const FakeFleet& fleet) { return fleet.newest().sequence() > 0; }));
  const auto ports = nlohmann::json::parse(ReadWholeFile(scratch_ / "port"));
  const int port = ports.at("http_port").get<int>();
  EXPECT_EQ(fleet_.Locked([](const FakeFleet& fleet) { return fleet.newest().http_port(); }), port);
  httplib::Client client("127.0.0.1", port);
  const auto response = client.Get("/metrics");
  ASSERT_TRUE(response);
  EXPECT_THAT(response->body, HasSubstr("longspan_worker_ranks{state=\"running\"} 0\n"));
}

TEST_F(ProgramTest, ASecondDaemonOnTheSameStateFolderIsRefused) {
  Start("log");
  ASSERT_TRUE(fleet_.WaitFor([](const FakeFleet& fleet) { return fleet.newest().sequence() > 0; }));
  EXPECT_EQ(WaitForEnd(Start("second")), 1);
  EXPECT_THAT(ReadWholeFile(scratch_ / "second"), HasSubstr("is in use by another longspan-worker"));
}

TEST_F(ProgramTest, WrongFlagsAreRefusedWithASentence) {
  EXPECT_EQ(WaitForEnd(Start("log", {"--http-listen", "nonsense"})), 2);
  EXPECT_THAT(ReadWholeFile(scratch_ / "log"), HasSubstr("'nonsense' is no HOST:PORT"));
  EXPECT_EQ(WaitForEnd(Start("log", {"--http-listen", "0.0.0.0:0"})), 2);
  EXPECT_THAT(ReadWholeFile(scratch_ / "log"), HasSubstr("listen on loopback or give --insecure"));
  EXPECT_EQ(WaitForEnd(Start("log", {"--label", "nonsense"})), 2);
  EXPECT_THAT(ReadWholeFile(scratch_ / "log"), HasSubstr("label 'nonsense' is not KEY=VALUE"));
  EXPECT_EQ(WaitForEnd(Start("log", {"--no-such-flag"})), 2);
  EXPECT_EQ(WaitForEnd(Start("log", {"--token-file", "/nowhere"})), 2);
  EXPECT_THAT(ReadWholeFile(scratch_ / "log"), HasSubstr("/nowhere holds no token"));
}

// A machine with the two GPUs of the test's driver, and a trainer that answers `version --json` in some way.
class GpuProgramTest : public ProgramTest {
 protected:
  GpuProgramTest() {
    std::filesystem::create_directories(scratch_ / "driver");
    std::filesystem::create_symlink(BinDir() / "libfake_nvml.so", scratch_ / "driver/libnvidia-ml.so.1");
    setenv("LD_LIBRARY_PATH", (scratch_ / "driver").c_str(), 1);
    unsetenv("CUDA_VISIBLE_DEVICES");
  }
  ~GpuProgramTest() override {
    unsetenv("LD_LIBRARY_PATH");
    unsetenv("CUDA_VISIBLE_DEVICES");
  }
  // Runs the daemon to its end, which is a refusal; what it said.
  std::string Refusal(const std::string& trainer_script) {
    trainer_ = scratch_.Script("other_trainer", trainer_script);
    EXPECT_EQ(WaitForEnd(Start("log")), 2) << trainer_script;
    return ReadWholeFile(scratch_ / "log");
  }
  static constexpr const char* kTwoGpus =
      R"(echo '{"cuda":true,"gpus":[{"name":"A","usable":true},{"name":"B","usable":true}]}')";
};

TEST_F(GpuProgramTest, OffersGpusToATrainerThatSeesThem) {
  // It is asked with the GPUs that are offered visible, and what it writes beside its answer does not matter.
  trainer_ = scratch_.Script("other_trainer", "echo \"$* $CUDA_VISIBLE_DEVICES\" > " + (scratch_ / "asked") +
                                                  "\necho warning: >&2\n" + kTwoGpus);
  Start("log");
  ASSERT_TRUE(fleet_.WaitFor([](const FakeFleet& fleet) { return fleet.newest().sequence() > 0; }))
      << ReadWholeFile(scratch_ / "log");
  EXPECT_EQ(fleet_.Locked([](const FakeFleet& fleet) { return fleet.newest().slots_size(); }), 2);
  EXPECT_EQ(ReadWholeFile(scratch_ / "asked"),
            "version --json GPU-00000000-1111-2222-3333-444444444444,GPU-10000000-1111-2222-3333-444444444444\n");
}

TEST_F(GpuProgramTest, RefusesATrainerThatCannotUseThem) {
  EXPECT_THAT(Refusal(R"(echo '{"version":"0.1.0","cuda":false,"gpus":[]}')"),
              AllOf(HasSubstr("other_trainer cannot train on the 2 GPUs that this worker would offer"),
                    HasSubstr("built without CUDA"), HasSubstr("--slots N"), HasSubstr("preset cuda")));
  EXPECT_THAT(Refusal(R"(echo '{"cuda":true,"gpus":[{"name":"A","usable":true}]}')"),
              HasSubstr("it sees 1 of GPU-00000000-1111-2222-3333-444444444444, GPU-1"));
  EXPECT_THAT(Refusal(R"(echo '{"cuda":true,"gpus":[{"name":"A","usable":true},)"
                      R"({"name":"Tesla V100","compute_capability":"7.0","usable":false}]}')"),
              HasSubstr("GPU-10000000-1111-2222-3333-444444444444 is Tesla V100 of compute capability 7.0, and 8.0"));
  EXPECT_THAT(Refusal("echo longspan-trainer 0.0.9"),
              HasSubstr("\"longspan-trainer 0.0.9\"; is it a longspan-trainer"));
  EXPECT_THAT(Refusal("echo libcudart.so.13: not found >&2\nexit 127"),
              HasSubstr("`version --json` ended with code 127: \"libcudart.so.13: not found\""));
  EXPECT_THAT(Refusal("kill -SEGV $$"), HasSubstr("`version --json` was killed by signal 11"));
  EXPECT_THAT(Refusal(R"(echo '{"cuda":true,"gpus":[7,{"usable":"yes"}]}')"), HasSubstr("is unknown of compute"));
}

TEST_F(GpuProgramTest, CpuSlotsNeedNoSuchTrainer) {
  Start("log", {"--slots", "3"});
  ASSERT_TRUE(fleet_.WaitFor([](const FakeFleet& fleet) { return fleet.newest().sequence() > 0; }));
  EXPECT_EQ(fleet_.Locked([](const FakeFleet& fleet) { return fleet.newest().slots(0).device(); }), "cpu");
}

TEST_F(GpuProgramTest, AsksForTheVisibleOnesAlone) {
  setenv("CUDA_VISIBLE_DEVICES", "1", 1);
  trainer_ = scratch_.Script("other_trainer", "echo \"{\\\"cuda\\\":true,\\\"gpus\\\":[{\\\"usable\\\":true}]}\"");
  Start("log");
  ASSERT_TRUE(fleet_.WaitFor([](const FakeFleet& fleet) { return fleet.newest().sequence() > 0; }))
      << ReadWholeFile(scratch_ / "log");
  EXPECT_EQ(fleet_.Locked([](const FakeFleet& fleet) { return fleet.newest().slots(0).uuid(); }),
            "GPU-10000000-1111-2222-3333-444444444444");
}

TEST(TrainerCheck, DoesNotWaitForATrainerThatHangs) {
  Scratch scratch;
  TrainerQuestion question;
  question.trainer = scratch.Script("trainer", "exec sleep 1000");
  question.gpus = {"GPU-0"};
  question.environment = {"PATH=/usr/bin:/bin"};
  question.deadline = absl::Milliseconds(50);
  EXPECT_THAT(std::string(AskTrainer(question).message()), HasSubstr("did not end within 50ms"));
}

TEST_F(ProgramTest, SigtermStopsItsRanksAndEndsWell) {
  const pid_t daemon = Start("log");
  WantRank();
  const pid_t rank = PidOfRank();
  kill(daemon, SIGTERM);
  EXPECT_EQ(WaitForEnd(daemon), 0) << ReadWholeFile(scratch_ / "log");
  EXPECT_TRUE(WaitUntilGone(rank));
  EXPECT_TRUE(fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Report(key_).exit().stopped(); }));
  EXPECT_TRUE(fleet_.Locked([](const FakeFleet& fleet) { return fleet.newest().leaving(); }));
}

// PR_SET_PDEATHSIG follows the thread that started the rank: this shows that it is one that lives as long as the
// program.
TEST_F(ProgramTest, KilledItTakesItsRanksAlongEvenStoppedOnes) {
  const pid_t daemon = Start("log");
  WantRank();
  const pid_t rank = PidOfRank();
  kill(rank, SIGSTOP);
  kill(daemon, SIGKILL);
  EXPECT_EQ(WaitForEnd(daemon), -SIGKILL);
  EXPECT_TRUE(WaitUntilGone(rank));
}

// A frozen daemon whose lease ran out kills its ranks as soon as it can, before it listens to anybody.
TEST_F(ProgramTest, FrozenBeyondItsLeaseItKillsItsRanksWhenItWakes) {
  fleet_.SetLease(absl::Milliseconds(800));
  const pid_t daemon = Start("log");
  WantRank();
  const pid_t rank = PidOfRank();
  kill(daemon, SIGSTOP);
  const auto lease_end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  // Nothing to wait for but time itself: the lease is what is being tested.
  EXPECT_FALSE(fleet_.WaitUntil(lease_end, [](const FakeFleet&) { return false; }));
  kill(daemon, SIGCONT);
  EXPECT_TRUE(WaitUntilGone(rank));
  EXPECT_TRUE(fleet_.WaitFor([&](const FakeFleet& fleet) { return fleet.Exited(key_); }));
  EXPECT_EQ(fleet_.Locked([&](const FakeFleet& fleet) { return fleet.Report(key_).exit().message(); }),
            "killed by its worker: the lease ran out");
}

}  // namespace
}  // namespace longspan::worker
