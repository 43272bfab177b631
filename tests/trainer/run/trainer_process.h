// Starts longspan-trainer as a child process, with or without the pipes of a daemon. Kills it when it goes out of
// scope.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "proto/trainer_lines/trainer_lines.h"
#include "tests/test_paths.h"

namespace longspan::testing {

class TrainerProcess {
 public:
  struct Options {
    bool lines = false;  // with the daemon's pipes
    rlim_t file_bytes_max = RLIM_INFINITY;
    std::string log;  // file for its standard error; empty: the test's own
  };

  TrainerProcess(std::vector<std::string> arguments, const Options& options) {
    int from_child[2] = {-1, -1}, to_child[2] = {-1, -1};
    if (options.lines) {
      EXPECT_EQ(::pipe2(from_child, O_CLOEXEC), 0);
      EXPECT_EQ(::pipe2(to_child, O_CLOEXEC), 0);
      arguments.insert(arguments.end(), {"--lines-out-fd", "98", "--lines-in-fd", "99"});
    }
    arguments.insert(arguments.begin(), (BinDir() / "longspan-trainer").string());
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::setenv("OMP_NUM_THREADS", "1", 1);
      if (options.lines) {
        ::dup2(from_child[1], 98);
        ::dup2(to_child[0], 99);
      }
      if (!options.log.empty()) {
        const int log = ::open(options.log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
        ::dup2(log, STDERR_FILENO);
      }
      if (options.file_bytes_max != RLIM_INFINITY) {
        const rlimit limit{options.file_bytes_max, options.file_bytes_max};
        ::setrlimit(RLIMIT_FSIZE, &limit);
      }
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    if (options.lines) {
      ::close(from_child[1]);
      ::close(to_child[0]);
      from_child_ = from_child[0];
      to_child_ = to_child[1];
    }
  }
  ~TrainerProcess() {
    Kill();
    WaitForExit();
    if (from_child_ >= 0) ::close(from_child_);
    CloseLines();
  }
  TrainerProcess(const TrainerProcess&) = delete;
  TrainerProcess& operator=(const TrainerProcess&) = delete;

  void Kill(int signal = SIGKILL) {
    if (!exit_status_) ::kill(pid_, signal);
  }
  void Send(const lines::ToTrainer& line) {
    const std::string text = lines::Encode(line);
    EXPECT_EQ(::write(to_child_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  void CloseLines() {
    if (to_child_ >= 0) ::close(to_child_);
    to_child_ = -1;
  }

  // The next line of the trainer that is a `Line` and for which `wanted` holds; empty when it ended first or took too
  // long.
  template <typename Line>
  std::optional<Line> Await(const std::function<bool(const Line&)>& wanted = {}) {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    while (std::chrono::steady_clock::now() < deadline) {
      while (auto text = buffer_.Next()) {
        bool malformed = false;
        const auto line = lines::DecodeFromTrainer(*text, &malformed);
        EXPECT_FALSE(malformed) << *text;
        if (!line) continue;
        if (const Line* found = std::get_if<Line>(&*line); found != nullptr && (!wanted || wanted(*found)))
          return *found;
      }
      pollfd ready{from_child_, POLLIN, 0};
      if (::poll(&ready, 1, 1000) <= 0) continue;
      char bytes[4096];
      const ssize_t got = ::read(from_child_, bytes, sizeof bytes);
      if (got <= 0) return std::nullopt;
      buffer_.Append(std::string_view(bytes, static_cast<size_t>(got)));
    }
    return std::nullopt;
  }

  // Exit code, or minus the signal that ended it; kills a process that takes too long.
  int WaitForExit() {
    if (exit_status_) return *exit_status_;
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    int status = 0;
    while (::waitpid(pid_, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "the trainer hangs";
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, &status, 0);
        break;
      }
      ::usleep(2000);
    }
    exit_status_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return *exit_status_;
  }

 private:
  static constexpr std::chrono::seconds kDeadline{60};
  pid_t pid_ = -1;
  int from_child_ = -1;
  int to_child_ = -1;
  lines::LineBuffer buffer_;
  std::optional<int> exit_status_;
};

}  // namespace longspan::testing
