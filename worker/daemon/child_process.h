// One trainer process: its pipes, its process group and its end.
//
// The child is the leader of its own process group and gets SIGKILL from the kernel when the *thread* that started it
// ends (PR_SET_PDEATHSIG): start children from a thread that lives as long as the daemon. It inherits the file
// descriptors 0 (empty), 1 and 2 (output), 3 (lines to the daemon), 4 (lines from the daemon) and nothing else, the
// environment it is given and no more, and default signals.
//
// Not thread-safe. All descriptors here are non-blocking. Linux 5.9 or newer (pidfd_open, close_range).
#pragma once

#include <absl/status/statusor.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "worker/daemon/unique_fd.h"

namespace longspan::worker {

struct ChildOptions {
  std::vector<std::string> arguments;    // arguments[0] is the program's path
  std::vector<std::string> environment;  // "NAME=value"
};

class ChildProcess {
 public:
  static constexpr int kLinesOutFd = 3;
  static constexpr int kLinesInFd = 4;
  // Bytes waiting for a child that does not read; a line that does not fit is refused.
  static constexpr size_t kUnsentBytesMax = 256 * 1024;

  struct End {
    int exit_code = -1;  // -1 when a signal ended it
    int signal = 0;
  };

  // Fails when the program cannot be executed.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const ChildOptions& options);

  // Kills the group and waits for the child.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  int end_fd() const { return pidfd_.get(); }        // readable when the child has ended
  int output_fd() const { return output_.get(); }    // its stdout and stderr
  int lines_fd() const { return lines_out_.get(); }  // what it says
  int send_fd() const {
    return lines_in_.get();
  }  // writable when unsent bytes can go on; -1 once it has closed its end

  // To the whole group. A stopped group is woken so that it sees a SIGTERM.
  void Signal(int signal);

  // False when the child reads too little or has closed its end. Keeps whole lines only.
  bool Send(std::string_view line);
  bool HasUnsent() const { return !unsent_.empty(); }
  void FlushUnsent();

  // Once the child has ended: kills what is left of its group and reaps it.
  std::optional<End> TryReap();

 private:
  ChildProcess() = default;

  pid_t pid_ = -1;
  bool reaped_ = false;
  UniqueFd pidfd_;
  UniqueFd output_;
  UniqueFd lines_out_;
  UniqueFd lines_in_;
  std::string unsent_;
};

// The part of this process's environment that trainers may see: PATH, HOME, LD_LIBRARY_PATH, CUDA_VISIBLE_DEVICES,
// PYTORCH_CUDA_ALLOC_CONF, NCCL_*, GLOO_*, OMP_*.
std::vector<std::string> AllowedEnvironment(const char* const* environment);

}  // namespace longspan::worker
