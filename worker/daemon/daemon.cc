#include "worker/daemon/daemon.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grpcpp/client_context.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <utility>

#include "proto/support/brings_news.h"
#include "proto/support/channel.h"
#include "proto/support/check.h"
#include "proto/support/hand_over.h"

namespace longspan::worker {
namespace {

constexpr size_t kReadBytes = 256 * 1024;    // per descriptor and turn of the loop
constexpr size_t kDrainBytesMax = 8u << 20;  // after the end: something that left the group could write for ever

// What an epoll event is about: the id of a running rank, and which of its descriptors.
enum Source : uint64_t { kWake = 0, kEnd = 1, kOutput = 2, kLines = 3, kSend = 4 };
uint64_t Token(uint64_t id, Source source) { return id * 8 + source; }

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

}  // namespace

absl::Time MonotonicNow() {
  timespec time = {};
  clock_gettime(CLOCK_BOOTTIME, &time);
  return absl::TimeFromTimespec(time);
}

struct Daemon::RunningRank {
  RankKey key;
  uint64_t id = 0;
  bool fresh = true;
  std::unique_ptr<LogSpool> log;
  std::unique_ptr<ChildProcess> child;  // after the log: dies first
  lines::LineBuffer lines;
  int64_t dropped_lines_counted = 0;
  int64_t dropped_bytes_counted = 0;
  bool send_watched = false;
};

struct Daemon::Call {
  absl::Time sent;
  bool leaving = false;
  grpc::ClientContext context;
  v1::SynchronizeRequest request;
  v1::SynchronizeResponse response;
  grpc::Status status;
};

Daemon::Daemon(DaemonOptions options, const std::shared_ptr<grpc::ChannelInterface>& channel, StateDir* state_dir,
               WorkerMetrics* metrics)
    : options_(std::move(options)),
      state_dir_(state_dir),
      metrics_(metrics),
      stub_(v1::FleetService::NewStub(channel)),
      supervisor_(options_.supervisor),
      schedule_(options_.schedule),
      uploader_(
          [this] {
            LogUploader::Options uploader = options_.uploader;
            uploader.worker_id = options_.worker_id;
            uploader.token = options_.token;
            return uploader;
          }(),
          channel),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      leave_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  CHECK(epoll_.valid() && wake_.valid() && leave_.valid()) << std::strerror(errno);
  std::signal(SIGPIPE, SIG_IGN);
  Watch(wake_.get(), Token(0, kWake), EPOLLIN);
  Watch(leave_.get(), Token(0, kEnd), EPOLLIN);
}

Daemon::~Daemon() {
  running_.clear();
  // The callbacks of unfinished calls refer to this object.
  for (const auto& [sequence, call] : calls_) call->context.TryCancel();
  while (!calls_.empty()) {
    uint64_t ignored = 0;
    (void)!read(wake_.get(), &ignored, sizeof ignored);
    {
      MutexLock lock(mutex_);
      for (const int64_t sequence : answered_) calls_.erase(sequence);
      answered_.clear();
    }
    if (!calls_.empty()) {
      epoll_event event;
      epoll_wait(epoll_.get(), &event, 1, 10);
    }
  }
}

void Daemon::Leave() {
  const uint64_t one = 1;
  (void)!write(leave_.get(), &one, sizeof one);
}

absl::Status Daemon::Run() {
  for (;;) {
    const absl::Time now = MonotonicNow();
    Apply(supervisor_.OnTick(now), now);
    BeginLeavingIfAsked(now);
    if (Left(now)) break;
    SendReportIfDue(now);
    Housekeep(now);
    WaitForEvents(now);
    // Leases before news: after a long freeze the ranks must not be taken for owned.
    const absl::Time after = MonotonicNow();
    Apply(supervisor_.OnTick(after), after);
    TakeAnswers(after);
  }
  if (!uploader_.WaitUntilStored(options_.leave_report_max)) spdlog::warn("left before all logs were stored");
  return absl::OkStatus();
}

// ---- the loop ----

void Daemon::WaitForEvents(absl::Time now) {
  absl::Time until = std::min({supervisor_.Deadline(), NextReport(), housekeep_at_, leave_deadline_});
  const absl::Duration wait = std::clamp(until - now, absl::ZeroDuration(), absl::Seconds(1));
  // Rounded up, or it would spin for the last millisecond.
  const int timeout_ms = static_cast<int>(absl::ToInt64Milliseconds(wait + absl::Nanoseconds(999'999)));
  epoll_event events[32];
  const int count = epoll_wait(epoll_.get(), events, 32, timeout_ms);
  for (int i = 0; i < count; ++i) HandleEvent(events[i].data.u64, events[i].events);
}

void Daemon::HandleEvent(uint64_t token, uint32_t events) {
  const uint64_t id = token / 8;
  const auto source = static_cast<Source>(token % 8);
  if (id == 0) {
    uint64_t count = 0;
    const int fd = source == kWake ? wake_.get() : leave_.get();
    if (read(fd, &count, sizeof count) == static_cast<ssize_t>(sizeof count) && source == kEnd) leave_calls_ += count;
    return;
  }
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  RunningRank& rank = *found->second;
  switch (source) {
    case kOutput:
      ReadOutput(rank, kReadBytes);
      break;
    case kLines:
      ReadLines(rank, kReadBytes);
      break;
    case kEnd:
      FinishRank(id);
      break;
    case kSend:
      rank.child->FlushUnsent();
      UpdateSendWatch(rank);
      break;
    case kWake:
      break;
  }
}

void Daemon::BeginLeavingIfAsked(absl::Time now) {
  if (leave_calls_ == 0) return;
  if (leave_deadline_ == absl::InfiniteFuture()) {
    spdlog::info("leaving: {} ranks to stop within {}", running_.size(), absl::FormatDuration(options_.leave_grace));
    leave_deadline_ = now + options_.leave_grace + options_.supervisor.kill_grace + options_.leave_report_max;
    Apply(supervisor_.BeginLeaving(options_.leave_grace, now), now);
  }
  if (leave_calls_ > 1 && !running_.empty()) {
    spdlog::warn("asked again to leave: kill {} ranks", running_.size());
    for (auto& [id, rank] : running_) rank->child->Signal(SIGKILL);
    leave_calls_ = 1;
  }
  // Nothing left but to tell: that is worth only so long.
  if (running_.empty()) leave_deadline_ = std::min(leave_deadline_, now + options_.leave_report_max);
}

bool Daemon::Left(absl::Time now) const {
  if (leave_calls_ == 0) return false;
  return now >= leave_deadline_ || (running_.empty() && supervisor_.Idle() && leaving_answered_);
}

void Daemon::Housekeep(absl::Time now) {
  if (now < housekeep_at_) return;
  housekeep_at_ = now + absl::Seconds(1);
  metrics_->Sweep(now);
  metrics_->SetRanks(supervisor_.CountRanks());
  metrics_->SetLeaseRemaining(supervisor_.lease_until() - now);
}

// ---- the server ----

absl::Time Daemon::NextReport() const { return schedule_.NextCall(supervisor_.ChangeDue(), supervisor_.ProgressDue()); }

void Daemon::SendReportIfDue(absl::Time now) {
  if (NextReport() > now) return;
  auto call = std::make_unique<Call>();
  call->sent = now;
  v1::SynchronizeRequest& request = call->request;
  request.set_worker_id(options_.worker_id);
  request.set_incarnation_id(options_.incarnation_id);
  request.set_advertise_address(options_.advertise_address);
  request.set_http_port(options_.http_port);
  request.mutable_slots()->Assign(options_.slots.begin(), options_.slots.end());
  request.mutable_labels()->insert(options_.labels.begin(), options_.labels.end());
  request.set_version(options_.version);
  supervisor_.FillReport(now, &request);
  const int64_t sequence = schedule_.OnSent(BringsNews(request), now);
  request.set_sequence(sequence);
  call->leaving = request.leaving();
  call->context.set_deadline(std::chrono::system_clock::now() +
                             absl::ToChronoMilliseconds(options_.schedule.call_deadline));
  Authorize(options_.token, &call->context);
  Call* const raw = call.get();
  calls_.emplace(sequence, std::move(call));
  HandOver(&grpc_callbacks);
  stub_->async()->Synchronize(&raw->context, &raw->request, &raw->response, [this, sequence, raw](grpc::Status status) {
    TakeOver(&grpc_callbacks);
    raw->status = std::move(status);
    const uint64_t one = 1;
    // Under the lock: once the loop has the sequence, the daemon may go.
    MutexLock lock(mutex_);
    answered_.push_back(sequence);
    (void)!write(wake_.get(), &one, sizeof one);
  });
}

void Daemon::TakeAnswers(absl::Time now) {
  std::deque<int64_t> answered;
  {
    MutexLock lock(mutex_);
    answered.swap(answered_);
  }
  for (const int64_t sequence : answered) {
    const auto call = calls_.extract(sequence);
    TakeAnswer(*call.mapped(), now);
  }
}

void Daemon::TakeAnswer(Call& call, absl::Time now) {
  metrics_->ObserveSynchronize(now - call.sent, call.status.ok());
  const int64_t failures = schedule_.failures();
  const int64_t sequence = call.request.sequence();
  if (!call.status.ok()) {
    schedule_.OnFailure(sequence, now);
    if (failures == 0 && schedule_.failures() > 0) {
      spdlog::warn("cannot synchronize with the server: {} (code {}); the lease lasts {} more",
                   call.status.error_message(), static_cast<int>(call.status.error_code()),
                   absl::FormatDuration(std::max(absl::ZeroDuration(), supervisor_.lease_until() - now)));
    }
    return;
  }
  const bool newest = schedule_.OnAnswer(sequence, FromProto(call.response.call_again()), now);
  if (failures > 0) spdlog::info("the server answers again, after {} failures", failures);
  if (!newest) return;
  leaving_answered_ |= call.leaving;
  Apply(supervisor_.OnAnswer(call.response, call.sent, now), now);
}

// ---- effects ----

void Daemon::Apply(const Effects& effects, absl::Time now) {
  for (const Effect& effect : effects) {
    if (const auto* spawn = std::get_if<SpawnRank>(&effect)) {
      Spawn(*spawn, now);
    } else if (const auto* send = std::get_if<SendLine>(&effect)) {
      Send(send->key, send->line);
    } else if (const auto* signal = std::get_if<SignalRank>(&effect)) {
      if (RunningRank* rank = Find(signal->key)) rank->child->Signal(signal->signal);
    } else if (const auto* note = std::get_if<Note>(&effect)) {
      spdlog::log(note->warning ? spdlog::level::warn : spdlog::level::info, "{}", note->text);
    }
    // ForgetRank: the uploader deletes the folder when it has the log.
  }
}

Daemon::RunningRank* Daemon::Find(const RankKey& key) {
  for (auto& [id, rank] : running_) {
    if (rank->key == key) return rank.get();
  }
  return nullptr;
}

void Daemon::Send(const RankKey& key, const lines::ToTrainer& line) {
  RunningRank* rank = Find(key);
  if (rank == nullptr) return;
  if (!rank->child->Send(lines::Encode(line))) spdlog::debug("{} does not take lines", ToString(key));
  UpdateSendWatch(*rank);
}

// ---- processes ----

void Daemon::Spawn(const SpawnRank& spawn, absl::Time now) {
  absl::StatusOr<std::unique_ptr<RunningRank>> rank = StartRank(spawn);
  if (!rank.ok()) {
    Apply(supervisor_.OnSpawnFailed(spawn.key, std::string(rank.status().message()), now), now);
    return;
  }
  spdlog::info("started {} as process {} ({})", ToString(spawn.key), (*rank)->child->pid(), spawn.desired.command());
  RunningRank& started = **rank;
  started.id = ++last_id_;
  running_.emplace(started.id, *std::move(rank));
  Watch(started.child->output_fd(), Token(started.id, kOutput), EPOLLIN);
  Watch(started.child->lines_fd(), Token(started.id, kLines), EPOLLIN);
  Watch(started.child->end_fd(), Token(started.id, kEnd), EPOLLIN);
}

absl::StatusOr<std::unique_ptr<Daemon::RunningRank>> Daemon::StartRank(const SpawnRank& spawn) {
  const v1::DesiredRank& desired = spawn.desired;
  if (desired.command() != "run" && desired.command() != "prepare") {
    return absl::InvalidArgumentError(fmt::format("unknown trainer command '{}'", desired.command()));
  }
  if (!LiesBelow(desired.folder(), options_.storage)) {
    return absl::InvalidArgumentError(
        fmt::format("the job's folder {} is not below this worker's storage {}", desired.folder(), options_.storage));
  }
  absl::StatusOr<std::string> folder = state_dir_->MakeRankFolder(spawn.key);
  if (!folder.ok()) return folder.status();
  const std::string spec_path = *folder + "/spec.json";
  if (absl::Status status = WriteFileWhole(spec_path, desired.spec_json()); !status.ok()) return status;
  auto rank = std::make_unique<RunningRank>();
  rank->key = spawn.key;
  rank->fresh = desired.resume_from().empty();
  absl::StatusOr<std::unique_ptr<LogSpool>> log = LogSpool::Create(*folder + "/log");
  if (!log.ok()) return log.status();
  rank->log = *std::move(log);
  absl::StatusOr<std::unique_ptr<ChildProcess>> child = ChildProcess::Start(CommandOf(desired, spec_path));
  uploader_.Add(spawn.key, *folder, rank->log->path());
  if (!child.ok()) {
    uploader_.Ended(spawn.key);
    return child.status();
  }
  rank->child = *std::move(child);
  return rank;
}

ChildOptions Daemon::CommandOf(const v1::DesiredRank& desired, const std::string& spec_path) const {
  const int64_t threads = std::max<int64_t>(1, desired.threads());
  ChildOptions options;
  options.arguments = {options_.trainer,
                       desired.command(),
                       spec_path,
                       "--work",
                       desired.folder(),
                       "--job",
                       desired.job_id(),
                       "--attempt",
                       std::to_string(desired.attempt()),
                       "--rank",
                       std::to_string(desired.rank()),
                       "--world-size",
                       std::to_string(desired.world_size()),
                       "--lines-out-fd",
                       std::to_string(ChildProcess::kLinesOutFd),
                       "--lines-in-fd",
                       std::to_string(ChildProcess::kLinesInFd),
                       "--threads",
                       std::to_string(threads),
                       "--advertise-address",
                       options_.advertise_address,
                       "--resume-from",
                       desired.resume_from().empty() ? "none" : desired.resume_from()};
  const auto slot = std::find_if(options_.slots.begin(), options_.slots.end(),
                                 [&](const v1::Slot& one) { return one.index() == desired.slot(); });
  const bool known = slot != options_.slots.end();
  const std::string gpu = known ? slot->uuid() : "";
  if (known && slot->memory_bytes() > 0) {
    options.arguments.insert(options.arguments.end(), {"--slot-memory", std::to_string(slot->memory_bytes())});
  }
  options.arguments.insert(options.arguments.end(), {"--device", gpu.empty() ? "cpu" : "cuda"});
  if (!desired.resume_from().empty()) {
    options.arguments.insert(options.arguments.end(), {"--manifest-sha256", desired.manifest_sha256()});
  }
  options.environment = AllowedEnvironment(environ);
  std::erase_if(options.environment, [](const std::string& entry) {
    return entry.starts_with("OMP_NUM_THREADS=") || entry.starts_with("CUDA_VISIBLE_DEVICES=");
  });
  options.environment.push_back(fmt::format("OMP_NUM_THREADS={}", threads));
  options.environment.push_back("CUDA_VISIBLE_DEVICES=" + gpu);  // a rank sees its own GPU, or none
  if (!options_.interface.empty()) {
    options.environment.push_back("NCCL_SOCKET_IFNAME=" + options_.interface);
    options.environment.push_back("GLOO_SOCKET_IFNAME=" + options_.interface);
  }
  return options;
}

void Daemon::ReadOutput(RunningRank& rank, size_t bytes_max) {
  char buffer[64 * 1024];
  for (size_t total = 0; total < bytes_max;) {
    const ssize_t got = read(rank.child->output_fd(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) break;
    if (got <= 0) {
      Unwatch(rank.child->output_fd());
      break;
    }
    rank.log->Append({buffer, static_cast<size_t>(got)});
    total += static_cast<size_t>(got);
  }
  uploader_.Grew(rank.key, rank.log->size());
  metrics_->CountDroppedLogBytes(rank.log->dropped_bytes() -
                                 std::exchange(rank.dropped_bytes_counted, rank.log->dropped_bytes()));
}

void Daemon::ReadLines(RunningRank& rank, size_t bytes_max) {
  char buffer[64 * 1024];
  for (size_t total = 0; total < bytes_max;) {
    const ssize_t got = read(rank.child->lines_fd(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) break;
    if (got <= 0) {
      Unwatch(rank.child->lines_fd());
      break;
    }
    rank.lines.Append({buffer, static_cast<size_t>(got)});
    total += static_cast<size_t>(got);
    while (const std::optional<std::string> text = rank.lines.Next()) {
      bool malformed = false;
      const std::optional<lines::FromTrainer> line = lines::DecodeFromTrainer(*text, &malformed);
      if (malformed) metrics_->CountMalformedLines(1);
      if (!line.has_value()) continue;
      const absl::Time now = MonotonicNow();
      const absl::Time wall = absl::FromChrono(std::chrono::system_clock::now());
      metrics_->OnLine(rank.key, rank.fresh, *line, wall);
      Apply(supervisor_.OnLine(rank.key, *line, now, wall), now);
    }
  }
  const int64_t dropped = rank.lines.dropped();
  metrics_->CountMalformedLines(dropped - std::exchange(rank.dropped_lines_counted, dropped));
}

void Daemon::FinishRank(uint64_t id) {
  RunningRank& rank = *running_.at(id);
  const std::optional<ChildProcess::End> end = rank.child->TryReap();
  if (!end.has_value()) return;
  // Its last words are still in the pipes.
  ReadLines(rank, kDrainBytesMax);
  ReadOutput(rank, kDrainBytesMax);
  uploader_.Ended(rank.key);
  const RankKey key = rank.key;
  const ProcessEnd process_end{end->exit_code, end->signal, rank.log->tail()};
  running_.erase(id);
  const absl::Time now = MonotonicNow();
  metrics_->OnRankEnded(key, now);
  Apply(supervisor_.OnExit(key, process_end, now), now);
}

void Daemon::Watch(int fd, uint64_t token, uint32_t events) {
  epoll_event event = {};
  event.events = events;
  event.data.u64 = token;
  CHECK_EQ(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event), 0) << std::strerror(errno);
}

void Daemon::Unwatch(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

// A pipe whose reader is gone is always "ready": it is watched only while something waits to be sent.
void Daemon::UpdateSendWatch(RunningRank& rank) {
  const int fd = rank.child->send_fd();
  const bool want = fd >= 0 && rank.child->HasUnsent();
  if (want && !rank.send_watched) Watch(fd, Token(rank.id, kSend), EPOLLOUT);
  if (!want && rank.send_watched && fd >= 0) Unwatch(fd);
  rank.send_watched = want;
}

}  // namespace longspan::worker
