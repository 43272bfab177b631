#include "client/local_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <system_error>

extern char** environ;

namespace longspan::client {
namespace {

constexpr std::streamoff kTailBytes = 2000;

std::vector<std::string> EnvironmentWith(std::map<std::string, std::string> variables) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (!variables.contains(text.substr(0, text.find('=')))) all.push_back(text);
  }
  for (const auto& [name, value] : variables) all.push_back(name + "=" + value);
  return all;
}

std::vector<char*> Pointers(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Gives the terminal to a process group, if this process has one.
void GiveTerminalTo(pid_t group) {
  if (!::isatty(STDIN_FILENO)) return;
  const auto before = ::signal(SIGTTOU, SIG_IGN);  // asked from the background, this would stop us
  ::tcsetpgrp(STDIN_FILENO, group);
  ::signal(SIGTTOU, before);
}

}  // namespace

LocalProcess::LocalProcess(Options options) : options_(std::move(options)) {
  // Everything is made before the fork: the child may call only what is safe after one.
  std::vector<std::string> environment = EnvironmentWith(options_.variables);
  std::vector<char*> argv = Pointers(options_.command), envp = Pointers(environment);
  const int log =
      options_.log.empty() ? -1 : ::open(options_.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (!options_.log.empty() && log < 0)
    throw std::system_error(errno, std::generic_category(), "cannot write " + options_.log.native());
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ == 0) RunInChild(argv.data(), envp.data(), log, parent);
  const int error_number = errno;
  if (log >= 0) ::close(log);
  if (pid_ < 0) throw std::system_error(error_number, std::generic_category(), "cannot start " + options_.name);
  ::setpgid(pid_, pid_);  // in both processes: whoever comes first
  if (options_.in_foreground) GiveTerminalTo(pid_);
}

void LocalProcess::RunInChild(char** argv, char** envp, int log, pid_t parent) const {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(127);  // it died before the line above
  if (options_.in_foreground) GiveTerminalTo(::getpid());
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  if (log >= 0) {
    ::dup2(log, STDOUT_FILENO);
    ::dup2(log, STDERR_FILENO);
    const int null = ::open("/dev/null", O_RDONLY);
    ::dup2(null, STDIN_FILENO);
  }
  ::execvpe(argv[0], argv, envp);
  ::_exit(127);
}

LocalProcess::~LocalProcess() {
  if (IsRunning()) {
    SignalGroup(SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  if (options_.in_foreground) GiveTerminalTo(::getpgrp());
}

bool LocalProcess::IsRunning() {
  if (exit_code_) return false;
  int status = 0;
  const pid_t ended = ::waitpid(pid_, &status, WNOHANG);
  if (ended != pid_) return true;
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return false;
}

void LocalProcess::SignalGroup(int signal) { ::kill(-pid_, signal); }

std::string LocalProcess::LogTail() const {
  std::ifstream in(options_.log, std::ios::binary | std::ios::ate);
  if (!in) return "";
  const std::streamoff size = in.tellg();
  in.seekg(std::max<std::streamoff>(0, size - kTailBytes));
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace longspan::client
