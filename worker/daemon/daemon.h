// The worker's loop: carries reports to the server and its wishes to processes. What to do is decided by Supervisor and
// SynchronizeSchedule; this does it.
//
// One thread runs the loop (epoll over pipes, process ends and answers) and starts all trainers: they die with that
// thread. Nothing in it waits for the server or for a trainer. Logs are uploaded by a thread of their own.
#pragma once

#include <absl/status/status.h>
#include <absl/time/time.h>
#include <grpcpp/channel.h>

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "longspan/v1/fleet_service.grpc.pb.h"
#include "proto/support/mutex.h"
#include "worker/daemon/child_process.h"
#include "worker/daemon/log_spool.h"
#include "worker/daemon/log_uploader.h"
#include "worker/daemon/state_dir.h"
#include "worker/daemon/supervisor.h"
#include "worker/daemon/synchronize_schedule.h"
#include "worker/daemon/unique_fd.h"
#include "worker/daemon/worker_metrics.h"

namespace longspan::worker {

struct DaemonOptions {
  std::string worker_id;
  std::string incarnation_id;     // new in every process
  std::string advertise_address;  // host or address of this machine, for ranks and scrapers elsewhere
  std::string interface;          // network interface for NCCL and Gloo; empty: theirs
  std::string trainer;            // path of the trainer program
  std::string storage;            // the shared storage; a job folder outside of it is refused
  std::string version;
  std::string token;  // of a worker; empty: none
  int64_t http_port = 0;
  std::vector<v1::Slot> slots;
  std::map<std::string, std::string> labels;
  SupervisorOptions supervisor;
  SynchronizeScheduleOptions schedule;
  LogUploader::Options uploader;                       // worker_id and token are filled in
  absl::Duration leave_grace = absl::Seconds(60);      // for ranks to checkpoint when the daemon is asked to leave
  absl::Duration leave_report_max = absl::Seconds(5);  // to tell the server the last things, once no rank is left
};

// The monotonic clock that leases are counted on; it goes on while the machine sleeps.
absl::Time MonotonicNow();

class Daemon {
 public:
  // `state_dir` and `metrics` must outlive it. Ignores SIGPIPE in the whole process.
  Daemon(DaemonOptions options, const std::shared_ptr<grpc::ChannelInterface>& channel, StateDir* state_dir,
         WorkerMetrics* metrics);
  ~Daemon();

  // Runs until Leave() was called and everything was stopped and reported. Call once.
  absl::Status Run();

  // Report that the worker leaves, stop the ranks, end Run(). A second call kills them at once. Any thread, also a
  // signal's.
  void Leave();

 private:
  struct RunningRank;
  struct Call;

  absl::Time NextReport() const;
  void SendReportIfDue(absl::Time now);
  void TakeAnswers(absl::Time now);
  void TakeAnswer(Call& call, absl::Time now);
  void WaitForEvents(absl::Time now);
  void HandleEvent(uint64_t token, uint32_t events);
  void BeginLeavingIfAsked(absl::Time now);
  bool Left(absl::Time now) const;
  void Housekeep(absl::Time now);

  void Apply(const Effects& effects, absl::Time now);
  void Spawn(const SpawnRank& spawn, absl::Time now);
  absl::StatusOr<std::unique_ptr<RunningRank>> StartRank(const SpawnRank& spawn);
  ChildOptions CommandOf(const v1::DesiredRank& desired, const std::string& spec_path) const;
  RunningRank* Find(const RankKey& key);
  void Send(const RankKey& key, const lines::ToTrainer& line);
  void ReadOutput(RunningRank& rank, size_t bytes_max);
  void ReadLines(RunningRank& rank, size_t bytes_max);
  void FinishRank(uint64_t id);
  void Watch(int fd, uint64_t token, uint32_t events);
  void Unwatch(int fd);
  void UpdateSendWatch(RunningRank& rank);

  const DaemonOptions options_;
  StateDir* const state_dir_;
  WorkerMetrics* const metrics_;
  const std::unique_ptr<v1::FleetService::Stub> stub_;
  Supervisor supervisor_;
  SynchronizeSchedule schedule_;
  LogUploader uploader_;
  UniqueFd epoll_;
  UniqueFd wake_;   // eventfd: answers have come
  UniqueFd leave_;  // eventfd: Leave() was called, so many times
  std::map<uint64_t, std::unique_ptr<RunningRank>> running_;
  uint64_t last_id_ = 0;
  std::map<int64_t, std::unique_ptr<Call>> calls_;  // in flight, by sequence
  uint64_t leave_calls_ = 0;
  absl::Time leave_deadline_ = absl::InfiniteFuture();
  bool leaving_answered_ = false;
  absl::Time housekeep_at_ = absl::InfinitePast();

  Mutex mutex_;
  std::deque<int64_t> answered_ GUARDED_BY(mutex_);  // sequences of calls that have ended
};

}  // namespace longspan::worker
