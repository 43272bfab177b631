#include "worker/daemon/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

namespace longspan::worker {
namespace {

constexpr int kErrorFd = 5;  // in the child, until exec: tells the parent why exec failed

struct Pipe {
  UniqueFd read;
  UniqueFd write;
};

// Both ends close on exec and lie above the descriptors that the child dups onto.
absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return absl::ResourceExhaustedError(fmt::format("pipe: {}", std::strerror(errno)));
  UniqueFd low_read(fds[0]);
  UniqueFd low_write(fds[1]);
  Pipe pipe{UniqueFd(fcntl(low_read.get(), F_DUPFD_CLOEXEC, 16)),
            UniqueFd(fcntl(low_write.get(), F_DUPFD_CLOEXEC, 16))};
  if (!pipe.read.valid() || !pipe.write.valid()) {
    return absl::ResourceExhaustedError(fmt::format("fcntl: {}", std::strerror(errno)));
  }
  return pipe;
}

void SetNonBlocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

struct ChildFds {
  int null;
  int output;
  int lines_out;
  int lines_in;
  int error;
};

// Runs between fork and exec in a process whose other threads are gone: async-signal-safe calls only.
[[noreturn]] void ExecuteChild(const ChildFds& fds, pid_t parent, char* const* arguments, char* const* environment) {
  const auto fail = [&] {
    const int error = errno;
    (void)!write(kErrorFd, &error, sizeof error);
    _exit(127);
  };
  // First of all, the errors' way out.
  if (dup2(fds.error, kErrorFd) < 0) _exit(127);
  fcntl(kErrorFd, F_SETFD, FD_CLOEXEC);
  if (setpgid(0, 0) != 0) fail();
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) fail();
  // The daemon may have died before prctl: then nobody would ever kill this process.
  if (getppid() != parent) _exit(127);
  for (int signal = 1; signal < NSIG; ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    struct sigaction action = {};
    action.sa_handler = SIG_DFL;
    sigaction(signal, &action, nullptr);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (dup2(fds.null, 0) < 0 || dup2(fds.output, 1) < 0 || dup2(fds.output, 2) < 0 ||
      dup2(fds.lines_out, ChildProcess::kLinesOutFd) < 0 || dup2(fds.lines_in, ChildProcess::kLinesInFd) < 0) {
    fail();
  }
  if (syscall(SYS_close_range, kErrorFd + 1, ~0U, 0) != 0) fail();
  execve(arguments[0], arguments, environment);
  fail();
  _exit(127);
}

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(const ChildOptions& options) {
  absl::StatusOr<Pipe> output = MakePipe();
  absl::StatusOr<Pipe> lines_out = MakePipe();
  absl::StatusOr<Pipe> lines_in = MakePipe();
  absl::StatusOr<Pipe> error = MakePipe();
  for (const auto* pipe : {&output, &lines_out, &lines_in, &error}) {
    if (!pipe->ok()) return pipe->status();
  }
  const UniqueFd low_null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const UniqueFd null(fcntl(low_null.get(), F_DUPFD_CLOEXEC, 16));
  if (!null.valid()) return absl::ResourceExhaustedError(fmt::format("/dev/null: {}", std::strerror(errno)));
  // A loaded machine may keep the daemon from reading for a while: let the trainer write on.
  fcntl(output->read.get(), F_SETPIPE_SZ, 1 << 20);

  const std::vector<char*> arguments = Pointers(options.arguments);
  const std::vector<char*> environment = Pointers(options.environment);
  const ChildFds fds{null.get(), output->write.get(), lines_out->write.get(), lines_in->read.get(), error->write.get()};
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::ResourceExhaustedError(fmt::format("fork: {}", std::strerror(errno)));
  if (pid == 0) ExecuteChild(fds, parent, arguments.data(), environment.data());

  std::unique_ptr<ChildProcess> child(new ChildProcess);
  child->pid_ = pid;
  // Either side may be first; EACCES means that the child did it and has executed.
  setpgid(pid, pid);
  error->write.Reset();
  int exec_error = 0;
  ssize_t got = 0;
  do {
    got = read(error->read.get(), &exec_error, sizeof exec_error);
  } while (got < 0 && errno == EINTR);
  if (got == static_cast<ssize_t>(sizeof exec_error)) {
    return absl::UnavailableError(
        fmt::format("cannot execute {}: {}", options.arguments[0], std::strerror(exec_error)));
  }
  child->pidfd_.Reset(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!child->pidfd_.valid()) return absl::UnavailableError(fmt::format("pidfd_open: {}", std::strerror(errno)));
  child->output_ = std::move(output->read);
  child->lines_out_ = std::move(lines_out->read);
  child->lines_in_ = std::move(lines_in->write);
  for (const int fd : {child->output_.get(), child->lines_out_.get(), child->lines_in_.get()}) SetNonBlocking(fd);
  return child;
}

ChildProcess::~ChildProcess() {
  if (reaped_ || pid_ <= 0) return;
  kill(-pid_, SIGKILL);
  kill(pid_, SIGKILL);  // in case it has not yet made its group
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void ChildProcess::Signal(int signal) {
  if (reaped_) return;
  kill(-pid_, signal);
  if (signal == SIGTERM) kill(-pid_, SIGCONT);
}

bool ChildProcess::Send(std::string_view line) {
  if (!lines_in_.valid() || unsent_.size() + line.size() > kUnsentBytesMax) return false;
  unsent_.append(line);
  FlushUnsent();
  return lines_in_.valid();
}

void ChildProcess::FlushUnsent() {
  size_t sent = 0;
  while (lines_in_.valid() && sent < unsent_.size()) {
    const ssize_t written = write(lines_in_.get(), unsent_.data() + sent, unsent_.size() - sent);
    if (written > 0) {
      sent += static_cast<size_t>(written);
    } else if (written < 0 && errno == EINTR) {
      continue;
    } else if (written < 0 && errno == EAGAIN) {
      break;
    } else {
      lines_in_.Reset();
    }
  }
  unsent_.erase(0, lines_in_.valid() ? sent : unsent_.size());
}

std::optional<ChildProcess::End> ChildProcess::TryReap() {
  if (reaped_) return std::nullopt;
  siginfo_t info = {};
  // First only look: until it is reaped its number, and so its group's, belongs to nobody else.
  if (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) {
    return std::nullopt;
  }
  kill(-pid_, SIGKILL);
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  reaped_ = true;
  End end;
  if (WIFSIGNALED(status)) {
    end.signal = WTERMSIG(status);
  } else {
    end.exit_code = WEXITSTATUS(status);
  }
  return end;
}

std::vector<std::string> AllowedEnvironment(const char* const* environment) {
  static constexpr std::string_view kNames[] = {"PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
                                                "PYTORCH_CUDA_ALLOC_CONF"};
  static constexpr std::string_view kPrefixes[] = {"NCCL_", "TORCH_NCCL_", "GLOO_", "OMP_"};
  std::vector<std::string> allowed;
  for (; environment != nullptr && *environment != nullptr; ++environment) {
    const std::string_view entry = *environment;
    const std::string_view name = entry.substr(0, entry.find('='));
    const bool named = std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
    const bool prefixed = std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                                      [&](std::string_view prefix) { return name.starts_with(prefix); });
    if (named || prefixed) allowed.emplace_back(entry);
  }
  return allowed;
}

}  // namespace longspan::worker
