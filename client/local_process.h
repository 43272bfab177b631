// A child process in its own process group, which ends when this one does. Start from a thread that lives as long as
// the children shall: their death signal follows the thread. It reaches the child only: what that starts in its turn
// must end with it by itself, as a daemon's trainers do. Not thread-safe.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace longspan::client {

class LocalProcess {
 public:
  struct Options {
    std::string name;
    std::vector<std::string> command;              // the program's path first
    std::filesystem::path log;                     // appended to; empty: this process's own streams
    std::map<std::string, std::string> variables;  // on top of this process's own
    bool in_foreground = false;                    // gets the terminal, when there is one
  };

  // Throws std::system_error when there can be no process; a program that cannot run exits with 127.
  explicit LocalProcess(Options options);
  // Kills what is left of the group.
  ~LocalProcess();
  LocalProcess(const LocalProcess&) = delete;
  LocalProcess& operator=(const LocalProcess&) = delete;

  const std::string& name() const { return options_.name; }
  // Whether it runs still; collects its exit status when not.
  bool IsRunning();
  // As a shell tells it: 128 + number for a signal. Set once it has ended.
  std::optional<int> exit_code() const { return exit_code_; }
  void SignalGroup(int signal);
  // Last bytes of its log.
  std::string LogTail() const;

 private:
  [[noreturn]] void RunInChild(char** argv, char** envp, int log, pid_t parent) const;

  Options options_;
  pid_t pid_ = -1;
  std::optional<int> exit_code_;
};

}  // namespace longspan::client
