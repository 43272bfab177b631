// The trainer's end of the line protocol (proto/trainer_lines), and of the signals: what the outside wants of this
// rank.
//
// Without pipes (a trainer run by hand) sending does nothing, and only signals arrive. Thread-safe. Owns one thread
// that reads lines and guards the lease: it ends the process by itself (exit 30) when the lease passes without a newer
// one, or when the daemon closes its end. Progress and reached lines are dropped when nobody reads; all others wait for
// room. One Session per process.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "proto/trainer_lines/trainer_lines.h"

namespace longspan::trainer {

// Thrown out of a phase that was asked to stop; whatever it had published stays.
struct StopRequested {};

class Session {
 public:
  struct Options {
    int lines_out_fd = -1;
    int lines_in_fd = -1;
    int64_t rank = 0;
    std::string version;
  };
  // Says hello, and takes SIGTERM and SIGINT over: both mean Stop with a checkpoint.
  explicit Session(const Options& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void Send(const lines::FromTrainer& line);
  // Into the log, and to the daemon.
  void Warn(const std::string& message);

  // What was asked for so far. Stopping stays; a checkpoint request is taken once.
  bool stop_requested() const;
  void ThrowIfStopped() const;  // StopRequested
  bool stop_with_checkpoint() const;
  std::string stop_reason() const;
  bool TakeCheckpointRequest();
  // Names that the server recorded since the last call.
  std::vector<std::string> TakeRecorded();
  // Address of rank 0's store, once the daemon told it.
  std::optional<std::string> rendezvous() const;
  // Returns early when something arrived. For loops that wait for an answer of the outside.
  void WaitForSomething(std::chrono::milliseconds at_most);

 private:
  void Read();
  void Handle(const std::string& text);

  const Options options_;
  std::mutex send_mutex_;

  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  bool stop_ = false;
  bool stop_with_checkpoint_ = false;
  std::string stop_reason_;
  bool checkpoint_requested_ = false;
  std::vector<std::string> recorded_;
  std::optional<std::string> rendezvous_;
  std::optional<std::chrono::steady_clock::time_point> lease_ends_;  // only the reading thread

  int wake_fds_[2] = {-1, -1};  // a byte here ends the reading thread
  std::thread reader_;
};

}  // namespace longspan::trainer
