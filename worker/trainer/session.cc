#include "worker/trainer/session.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <variant>

#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

// Set by the signal handler, read by everyone: the only state of the process that a signal can reach.
volatile std::sig_atomic_t signal_received = 0;

void OnSignal(int number) { signal_received = number; }

void InstallSignalHandlers() {
  struct sigaction action{};
  action.sa_handler = OnSignal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  // A file-size limit then is an error of write(), like a full disk, not the end of the process.
  ::signal(SIGXFSZ, SIG_IGN);
}

[[noreturn]] void EndBecauseAlone(const std::string& why) {
  spdlog::error("{}: this rank ends by itself", why);
  spdlog::default_logger()->flush();
  // No destructors: the training thread may be anywhere, and nothing it does from here on may count.
  ::_exit(static_cast<int>(ExitCode::kInfrastructure));
}

}  // namespace

Session::Session(const Options& options) : options_(options) {
  InstallSignalHandlers();
  Send(lines::Hello{lines::kProtocolVersion, ::getpid(), options.rank, options.version});
  if (options_.lines_in_fd < 0) return;
  if (::pipe2(wake_fds_, O_CLOEXEC) != 0)
    throw InfrastructureError("cannot make a pipe: " + std::string(std::strerror(errno)));
  reader_ = std::thread([this] { Read(); });
}

Session::~Session() {
  if (!reader_.joinable()) return;
  [[maybe_unused]] const ssize_t written = ::write(wake_fds_[1], "x", 1);
  reader_.join();
  ::close(wake_fds_[0]);
  ::close(wake_fds_[1]);
}

void Session::Send(const lines::FromTrainer& line) {
  if (options_.lines_out_fd < 0) return;
  const std::string text = lines::Encode(line);
  const std::lock_guard lock(send_mutex_);
  if (std::holds_alternative<lines::Progress>(line) || std::holds_alternative<lines::Reached>(line)) {
    pollfd out{options_.lines_out_fd, POLLOUT, 0};
    if (::poll(&out, 1, 0) <= 0 || (out.revents & POLLOUT) == 0) return;
  }
  for (size_t done = 0; done < text.size();) {
    const ssize_t written = ::write(options_.lines_out_fd, text.data() + done, text.size() - done);
    if (written > 0) {
      done += static_cast<size_t>(written);
    } else if (errno == EAGAIN) {
      pollfd out{options_.lines_out_fd, POLLOUT, 0};
      ::poll(&out, 1, 1000);
    } else if (errno != EINTR) {
      return;  // the daemon is gone: the reading thread ends this process
    }
  }
}

void Session::Warn(const std::string& message) {
  spdlog::warn("{}", message);
  Send(lines::Warning{message});
}

bool Session::stop_requested() const {
  const std::lock_guard lock(mutex_);
  return stop_ || signal_received != 0;
}

void Session::ThrowIfStopped() const {
  if (stop_requested()) throw StopRequested{};
}

bool Session::stop_with_checkpoint() const {
  const std::lock_guard lock(mutex_);
  return stop_ ? stop_with_checkpoint_ : signal_received != 0;
}

std::string Session::stop_reason() const {
  const std::lock_guard lock(mutex_);
  if (stop_) return stop_reason_;
  return signal_received != 0 ? "signal " + std::to_string(signal_received) : "";
}

bool Session::TakeCheckpointRequest() {
  const std::lock_guard lock(mutex_);
  return std::exchange(checkpoint_requested_, false);
}

std::vector<std::string> Session::TakeRecorded() {
  const std::lock_guard lock(mutex_);
  return std::exchange(recorded_, {});
}

std::optional<std::string> Session::rendezvous() const {
  const std::lock_guard lock(mutex_);
  return rendezvous_;
}

void Session::WaitForSomething(std::chrono::milliseconds at_most) {
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, at_most);
}

void Session::Read() {
  lines::LineBuffer buffer;
  while (true) {
    int timeout_ms = -1;
    if (lease_ends_) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*lease_ends_ - std::chrono::steady_clock::now());
      if (left.count() <= 0) EndBecauseAlone("the lease of this rank ran out");
      timeout_ms = static_cast<int>(std::min<int64_t>(left.count(), 60'000));
    }
    pollfd ready[2] = {{options_.lines_in_fd, POLLIN, 0}, {wake_fds_[0], POLLIN, 0}};
    if (::poll(ready, 2, timeout_ms) < 0 && errno != EINTR) EndBecauseAlone("cannot wait for the daemon");
    if (ready[1].revents != 0) return;
    if (ready[0].revents == 0) continue;
    char bytes[4096];
    const ssize_t got = ::read(options_.lines_in_fd, bytes, sizeof bytes);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got <= 0) EndBecauseAlone("the daemon closed its lines");
    buffer.Append(std::string_view(bytes, static_cast<size_t>(got)));
    while (auto line = buffer.Next()) Handle(*line);
  }
}

void Session::Handle(const std::string& text) {
  bool malformed = false;
  const auto line = lines::DecodeToTrainer(text, &malformed);
  if (malformed) spdlog::warn("dropped a malformed line of the daemon: {}", text.substr(0, 200));
  if (!line) return;
  const std::lock_guard lock(mutex_);
  if (const auto* rendezvous = std::get_if<lines::Rendezvous>(&*line)) rendezvous_ = rendezvous->address;
  if (const auto* stop = std::get_if<lines::Stop>(&*line)) {
    stop_ = true;
    stop_with_checkpoint_ = stop->checkpoint;
    stop_reason_ = stop->reason;
  }
  if (std::holds_alternative<lines::CheckpointNow>(*line)) checkpoint_requested_ = true;
  if (const auto* lease = std::get_if<lines::Lease>(&*line)) {
    const auto remaining = std::chrono::duration<double>(std::clamp(lines::RemainingSeconds(*lease), 0.0, 1e9));
    lease_ends_ =
        std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(remaining);
  }
  if (const auto* recorded = std::get_if<lines::CheckpointRecorded>(&*line)) recorded_.push_back(recorded->name);
  arrived_.notify_all();
}

}  // namespace longspan::trainer
