// `longspan dev`: child processes, the order of their start and end, and what is said when one fails. Shell scripts
// stand in for the server and the workers.
#include "client/local_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <thread>

#include "client/command.h"
#include "tests/temporary_folder.h"

namespace longspan::client {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Tells of its start and of SIGTERM in one file, is ready at once, and then waits.
constexpr char kScript[] = R"(#!/bin/sh
name=server
while [ $# -gt 0 ]; do
  case $1 in --port-file) ports=$2 ;; --name) name=$2 ;; esac
  shift
done
trap 'echo "$name ends" >> "$EVENTS"; kill $!; exit 0' TERM
echo "$name starts" >> "$EVENTS"
echo '{"grpc_port": 1234, "http_port": 1235}' > "$ports.new" && mv "$ports.new" "$ports"
sleep 1000 & wait $!
)";

class LocalClusterTest : public ::testing::Test {
 protected:
  LocalClusterTest() {
    ::setenv("EVENTS", (folder_ / "events").c_str(), 1);
    for (const char* program : {"longspan-server", "longspan-worker", "trainer"}) WriteProgram(program, kScript);
  }

  void WriteProgram(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    fs::permissions(folder_ / name, fs::perms::owner_all);
  }
  LocalCluster::Options Options() const {
    LocalCluster::Options options;
    options.programs = folder_;
    options.trainer = folder_ / "trainer";
    options.state_dir = folder_ / "state";
    return options;
  }
  std::vector<std::string> Events() const {
    std::vector<std::string> events;
    std::ifstream in(folder_ / "events");
    for (std::string line; std::getline(in, line);) events.push_back(line);
    return events;
  }
  std::string ErrorOf(const LocalCluster::Options& options) const {
    try {
      LocalCluster cluster(options);
    } catch (const CommandError& error) {
      return error.what();
    }
    return "no error";
  }

  const testing::TemporaryFolder temporary_folder_;
  const fs::path folder_ = temporary_folder_.path();
};

TEST_F(LocalClusterTest, ServerFirstAndLast) {
  {
    LocalCluster cluster(Options());
    EXPECT_EQ(cluster.address(), "127.0.0.1:1234");
    EXPECT_EQ(cluster.http_address(), "127.0.0.1:1235");
    EXPECT_EQ(cluster.NewlyEnded(), nullptr);
    EXPECT_THAT(ErrorOf(Options()), HasSubstr("in use by another longspan dev"));
  }
  const std::vector<std::string> events = Events();
  ASSERT_EQ(events.size(), 6u);
  EXPECT_EQ(events.front(), "server starts");
  EXPECT_EQ(events.back(), "server ends");
  EXPECT_EQ(ErrorOf(Options()), "no error") << "the folder is free again";
}

TEST_F(LocalClusterTest, AProgramThatEndsAtItsStartIsQuoted) {
  WriteProgram("longspan-server", "#!/bin/sh\necho 'port 7 is in use'\nexit 3\n");
  EXPECT_THAT(ErrorOf(Options()),
              ::testing::AllOf(HasSubstr("server ended at its start with exit code 3"), HasSubstr("port 7 is in use")));
  fs::remove(folder_ / "trainer");
  EXPECT_THAT(ErrorOf(Options()), HasSubstr("the trainer " + (folder_ / "trainer").native() + " is not there"));
}

TEST_F(LocalClusterTest, AnEndedWorkerIsToldOnce) {
  WriteProgram("longspan-worker",
               "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ $1 = --port-file ] && ports=$2; shift; done\necho '{}' > "
               "$ports.new; mv $ports.new $ports; exit 7\n");
  LocalCluster::Options options = Options();
  options.workers = 1;
  // It may be gone before its port file is read, or after: both are right, and only the second is of interest.
  try {
    LocalCluster cluster(options);
    LocalProcess* ended = nullptr;
    while (ended == nullptr) ended = cluster.NewlyEnded();
    EXPECT_EQ(ended->name(), "worker-0");
    EXPECT_EQ(ended->exit_code(), 7);
    EXPECT_FALSE(cluster.IsServer(ended));
    EXPECT_EQ(cluster.NewlyEnded(), nullptr);
  } catch (const CommandError& error) {
    EXPECT_THAT(error.what(), HasSubstr("exit code 7"));
  }
}

// The shell becomes `sleep` instead of starting it: the signal of the death goes to the child, not to the child's own.
void ExpectChildDiesWithItsParent(bool once_it_runs) {
  int line[2];
  ASSERT_EQ(::pipe(line), 0);
  const pid_t parent = ::fork();
  if (parent == 0) {
    LocalProcess::Options options;
    options.command = {"/bin/sh", "-c", "echo; exec sleep 1000"};
    ::dup2(line[1], STDOUT_FILENO);
    LocalProcess child(options);  // it holds the writing end of the pipe open
    ::close(line[1]);
    ::close(STDOUT_FILENO);
    char newline = 0;
    if (once_it_runs && ::read(line[0], &newline, 1) != 1) ::_exit(1);
    ::kill(::getpid(), SIGKILL);
  }
  ::close(line[1]);
  int status = 0;
  ::waitpid(parent, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status)) << "the child must say that it runs";
  char byte = 0;
  while (::read(line[0], &byte, 1) == 1) continue;  // end of file comes when the last holder is gone
  ::close(line[0]);
}

TEST_F(LocalClusterTest, ARunningChildDiesWithItsParent) { ExpectChildDiesWithItsParent(true); }

TEST_F(LocalClusterTest, AChildAtItsStartDiesWithItsParent) { ExpectChildDiesWithItsParent(false); }

TEST_F(LocalClusterTest, ExitCodesAreAShells) {
  LocalProcess::Options options;
  options.command = {"/bin/sh", "-c", "test \"$ADDED\" = yes && kill -9 $$"};
  options.variables = {{"ADDED", "yes"}};
  LocalProcess killed(options);
  while (killed.IsRunning()) std::this_thread::yield();
  EXPECT_EQ(killed.exit_code(), 137);
  options.command = {"/no/such/program"};
  LocalProcess missing(options);
  while (missing.IsRunning()) std::this_thread::yield();
  EXPECT_EQ(missing.exit_code(), 127);
}

}  // namespace
}  // namespace longspan::client
