// Child processes and the files that a daemon keeps for them.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <set>

#include "tests/worker/daemon/scratch.h"
#include "worker/daemon/child_process.h"
#include "worker/daemon/inventory.h"
#include "worker/daemon/log_spool.h"
#include "worker/daemon/state_dir.h"

namespace longspan::worker {
namespace {

using ::longspan::testing::ReadUntil;
using ::longspan::testing::ReadWholeFile;
using ::longspan::testing::Scratch;
using ::longspan::testing::WaitUntilGone;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<ChildProcess> StartChild(const std::vector<std::string>& arguments,
                                         std::vector<std::string> environment = {}) {
  environment.push_back("PATH=/usr/bin:/bin");
  auto child = ChildProcess::Start({arguments, environment});
  EXPECT_TRUE(child.ok()) << child.status().ToString();
  return child.ok() ? *std::move(child) : nullptr;
}

ChildProcess::End WaitForEnd(ChildProcess& child) {
  pollfd poll_fd{child.end_fd(), POLLIN, 0};
  EXPECT_EQ(poll(&poll_fd, 1, 10'000), 1) << "the child did not end";
  const auto end = child.TryReap();
  EXPECT_TRUE(end.has_value());
  return end.value_or(ChildProcess::End{});
}

TEST(ChildProcessTest, InheritsFiveDescriptorsTheGivenEnvironmentAndNothingElse) {
  Scratch scratch;
  const int leaked = open("/dev/null", O_RDONLY);  // not closed on exec: the child must not get it all the same
  const std::string script = scratch.Script("child", "env | sort\nls -1 /proc/$$/fd\necho done\n");
  const auto child = StartChild({script}, {"OMP_NUM_THREADS=2"});
  const std::string output = ReadUntil(child->output_fd(), "done\n");
  EXPECT_THAT(output, HasSubstr("OMP_NUM_THREADS=2\nPATH=/usr/bin:/bin\nPWD="));
  // dash holds its script open as 10.
  EXPECT_THAT(output, HasSubstr("0\n1\n10\n2\n3\n4\ndone"));
  EXPECT_EQ(WaitForEnd(*child).exit_code, 0);
  close(leaked);
}

TEST(ChildProcessTest, CarriesLinesBothWays) {
  Scratch scratch;
  const auto child = StartChild({scratch.Script("child", "read line <&4\necho \"heard $line\" >&3\nexit 40\n")});
  EXPECT_TRUE(child->Send("hello\n"));
  EXPECT_EQ(ReadUntil(child->lines_fd(), "\n"), "heard hello\n");
  EXPECT_EQ(WaitForEnd(*child).exit_code, 40);
}

TEST(ChildProcessTest, AChildThatDoesNotReadNeverBlocksTheDaemon) {
  Scratch scratch;
  const auto child = StartChild({scratch.Script("child", "exec sleep 600\n")});
  const std::string line = std::string(999, 'x') + "\n";
  int accepted = 0;
  while (accepted < 10'000 && child->Send(line)) ++accepted;
  EXPECT_LT(accepted, 1000);
  EXPECT_GT(accepted, 200);
  EXPECT_TRUE(child->HasUnsent());
}

TEST(ChildProcessTest, AChildThatClosedItsEndRefusesLines) {
  std::signal(SIGPIPE, SIG_IGN);
  Scratch scratch;
  const auto child = StartChild({scratch.Script("child", "exec 4<&-\necho closed >&3\nexec sleep 600\n")});
  EXPECT_EQ(ReadUntil(child->lines_fd(), "\n"), "closed\n");
  EXPECT_FALSE(child->Send("hello\n"));
  EXPECT_FALSE(child->HasUnsent());
  EXPECT_EQ(child->send_fd(), -1);
}

TEST(ChildProcessTest, AProgramThatCannotBeExecutedIsAnErrorWithItsName) {
  const auto missing = ChildProcess::Start({{"/nowhere/trainer"}, {}});
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(std::string(missing.status().message()), "cannot execute /nowhere/trainer: No such file or directory");
  Scratch scratch;
  EXPECT_FALSE(ChildProcess::Start({{scratch.path()}, {}}).ok());
}

TEST(ChildProcessTest, TheEndOfTheChildIsTheEndOfItsGroup) {
  Scratch scratch;
  const auto child = StartChild({scratch.Script("child", "sleep 600 &\necho $! >&3\nexit 3\n")});
  const pid_t grandchild = std::stoi(ReadUntil(child->lines_fd(), "\n"));
  EXPECT_EQ(WaitForEnd(*child).exit_code, 3);
  EXPECT_TRUE(WaitUntilGone(grandchild));
}

TEST(ChildProcessTest, SignalsReachTheWholeGroupEvenAStoppedOne) {
  Scratch scratch;
  const auto child = StartChild({scratch.Script("child", "sleep 600 &\necho $! >&3\nwait\n")});
  const pid_t grandchild = std::stoi(ReadUntil(child->lines_fd(), "\n"));
  child->Signal(SIGSTOP);
  child->Signal(SIGTERM);
  EXPECT_EQ(WaitForEnd(*child).signal, SIGTERM);
  EXPECT_TRUE(WaitUntilGone(grandchild));
}

TEST(ChildProcessTest, DestroyingItKillsAStoppedChild) {
  Scratch scratch;
  auto child = StartChild({scratch.Script("child", "trap '' TERM\necho up >&3\nwhile :; do sleep 600; done\n")});
  EXPECT_EQ(ReadUntil(child->lines_fd(), "\n"), "up\n");
  const pid_t pid = child->pid();
  child->Signal(SIGSTOP);
  child.reset();
  EXPECT_TRUE(WaitUntilGone(pid));
}

// A daemon that is killed with -9 takes its children with it, stopped or not.
TEST(ChildProcessTest, ChildrenDieWithTheirDaemon) {
  Scratch scratch;
  const std::string script = scratch.Script("child", "trap '' TERM HUP INT\necho $$ >&3\nexec sleep 600\n");
  for (const bool stopped : {false, true}) {
    int pipe_fds[2];
    ASSERT_EQ(pipe(pipe_fds), 0);
    const pid_t daemon = fork();
    ASSERT_GE(daemon, 0);
    if (daemon == 0) {
      auto child = ChildProcess::Start({{script}, {"PATH=/usr/bin:/bin"}});
      if (!child.ok()) _exit(1);
      const std::string pid = ReadUntil((*child)->lines_fd(), "\n");
      if (stopped) (*child)->Signal(SIGSTOP);
      (void)!write(pipe_fds[1], pid.data(), pid.size());
      for (;;) pause();
    }
    close(pipe_fds[1]);
    const std::string text = ReadUntil(pipe_fds[0], "\n");
    close(pipe_fds[0]);
    kill(daemon, SIGKILL);
    waitpid(daemon, nullptr, 0);
    ASSERT_FALSE(text.empty());
    EXPECT_TRUE(WaitUntilGone(std::stoi(text))) << (stopped ? "stopped" : "running") << " child outlived its daemon";
  }
}

TEST(ChildProcessTest, OnlyListedNamesOfTheEnvironmentPass) {
  const char* const environment[] = {"PATH=/bin",
                                     "HOME=/root",
                                     "SECRET=x",
                                     "NCCL_DEBUG=INFO",
                                     "TORCH_NCCL_BLOCKING_WAIT=1",
                                     "OMP_PLACES=cores",
                                     "PATHS=x",
                                     "LD_PRELOAD=evil.so",
                                     "GLOO_X=1",
                                     "LD_LIBRARY_PATH=/lib",
                                     "CUDA_VISIBLE_DEVICES=0",
                                     "PYTORCH_CUDA_ALLOC_CONF=y",
                                     nullptr};
  EXPECT_THAT(
      AllowedEnvironment(environment),
      ElementsAre("PATH=/bin", "HOME=/root", "NCCL_DEBUG=INFO", "TORCH_NCCL_BLOCKING_WAIT=1", "OMP_PLACES=cores",
                  "GLOO_X=1", "LD_LIBRARY_PATH=/lib", "CUDA_VISIBLE_DEVICES=0", "PYTORCH_CUDA_ALLOC_CONF=y"));
}

TEST(LogSpoolTest, KeepsBytesAsTheyComeAndCutsLongLines) {
  Scratch scratch;
  auto spool = LogSpool::Create(scratch / "log");
  ASSERT_TRUE(spool.ok());
  (*spool)->Append("one\ntw");
  (*spool)->Append("o\n");
  (*spool)->Append(std::string(70'000, 'x'));
  (*spool)->Append(std::string(70'000, 'y') + "\nlast\n");
  const std::string expected = "one\ntwo\n" + std::string(65536, 'x') + " [line cut at 64 KiB]\nlast\n";
  EXPECT_EQ(ReadWholeFile(scratch / "log"), expected);
  EXPECT_EQ((*spool)->size(), static_cast<int64_t>(expected.size()));
  EXPECT_EQ((*spool)->dropped_bytes(), 140'000 - 65'536);
  EXPECT_THAT((*spool)->tail(), HasSubstr("cut at 64 KiB]\nlast\n"));
}

TEST(LogSpoolTest, ALineOfExactlyTheLimitIsNotCut) {
  Scratch scratch;
  auto spool = LogSpool::Create(scratch / "log");
  (*spool)->Append(std::string(65536, 'x') + "\n" + std::string(65537, 'y') + "\n");
  EXPECT_EQ(ReadWholeFile(scratch / "log"),
            std::string(65536, 'x') + "\n" + std::string(65536, 'y') + " [line cut at 64 KiB]\n");
}

TEST(LogSpoolTest, AFullSpoolSaysSoAndKeepsTheTailInMemory) {
  Scratch scratch;
  auto spool = LogSpool::Create(scratch / "log", 100);
  for (int i = 0; i < 1000; ++i) (*spool)->Append(fmt::format("line {}\n", i));
  EXPECT_THAT(ReadWholeFile(scratch / "log"), HasSubstr("[log cut: it is longer than the worker keeps]"));
  EXPECT_LT((*spool)->size(), 200);
  EXPECT_THAT((*spool)->tail(), HasSubstr("line 999\n"));
  EXPECT_LE((*spool)->tail().size(), 8192u);
}

TEST(StateDirTest, ASecondDaemonIsRefusedAndLeftoversAreCleaned) {
  Scratch scratch;
  const std::string path = scratch / "state";
  auto first = StateDir::Open(path);
  ASSERT_TRUE(first.ok()) << first.status().ToString();
  const auto folder = (*first)->MakeRankFolder({"job-1", 2, 3});
  ASSERT_TRUE(folder.ok());
  EXPECT_EQ(*folder, path + "/ranks/job-1.attempt-2.rank-3");
  ASSERT_TRUE(WriteFileWhole(*folder + "/spec.json", "{}").ok());
  const auto second = StateDir::Open(path);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.status().ToString(), HasSubstr("in use by another longspan-worker"));
  first->reset();
  ASSERT_TRUE(StateDir::Open(path).ok());
  EXPECT_FALSE(std::filesystem::exists(*folder));
}

TEST(StateDirTest, RefusesNamesThatAreNoJobIds) {
  Scratch scratch;
  auto dir = StateDir::Open(scratch / "state");
  for (const char* name : {"", "..", "../x", "a/b", ".hidden", "a b"}) {
    EXPECT_FALSE((*dir)->MakeRankFolder({name, 1, 0}).ok()) << name;
  }
}

TEST(StateDirTest, LiesBelowSeesThroughDotsAndLinks) {
  Scratch scratch;
  const std::string root = scratch / "storage";
  std::filesystem::create_directories(root + "/jobs");
  std::filesystem::create_directory_symlink(scratch.path(), root + "/out");
  EXPECT_TRUE(LiesBelow(root, root));
  EXPECT_TRUE(LiesBelow(root + "/jobs/new", root));
  EXPECT_TRUE(LiesBelow(root + "/jobs/new", root + "/"));
  EXPECT_FALSE(LiesBelow(root + "/../other", root));
  EXPECT_FALSE(LiesBelow(root + "-other", root));
  EXPECT_FALSE(LiesBelow(root + "/out/elsewhere", root));
  EXPECT_FALSE(LiesBelow("jobs", root));
  EXPECT_FALSE(LiesBelow(root, ""));
}

TEST(InventoryTest, SlotsShareTheMemoryOfTheMachineOrItsCgroup) {
  Scratch scratch;
  std::ofstream(scratch / "meminfo") << "MemFree:  1 kB\nMemTotal:       8192 kB\n";
  std::ofstream(scratch / "memory.max") << "max\n";
  EXPECT_EQ(MachineMemoryBytes(scratch.path(), scratch.path()), 8192 * 1024);
  std::ofstream(scratch / "memory.max") << "4096\n";
  EXPECT_EQ(MachineMemoryBytes(scratch.path(), scratch.path()), 4096);
  EXPECT_EQ(MachineMemoryBytes("/nowhere", "/nowhere"), 0);
  const auto slots = CpuSlots(2, 4096);
  ASSERT_EQ(slots.size(), 2u);
  EXPECT_EQ(slots[1].index(), 1);
  EXPECT_EQ(slots[1].device(), "cpu");
  EXPECT_EQ(slots[1].memory_bytes(), 2048);
}

}  // namespace
}  // namespace longspan::worker
