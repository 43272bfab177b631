#include "worker/daemon/log_uploader.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <grpcpp/client_context.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "proto/support/channel.h"
#include "worker/daemon/unique_fd.h"

namespace longspan::worker {
namespace {

// Calls that store nothing new before a log is given up: the server keeps answering, yet does not take it.
constexpr int kFruitlessCallsMax = 5;

bool Unreachable(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::CANCELLED:
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::ABORTED:
      return true;
    default:
      return false;
  }
}

std::chrono::steady_clock::time_point SteadyAfter(absl::Duration duration) {
  return std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(duration);
}

}  // namespace

LogUploader::LogUploader(Options options, const std::shared_ptr<grpc::ChannelInterface>& channel)
    : options_(std::move(options)), stub_(v1::FleetService::NewStub(channel)), thread_([this] { Run(); }) {}

LogUploader::~LogUploader() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    if (call_ != nullptr) call_->TryCancel();
  }
  changed_.NotifyAll();
  thread_.join();
}

void LogUploader::Add(const RankKey& key, const std::string& folder, const std::string& log_path) {
  MutexLock lock(mutex_);
  logs_[key] = Log{.folder = folder, .path = log_path, .age = ++clock_};
}

void LogUploader::Grew(const RankKey& key, int64_t size) {
  MutexLock lock(mutex_);
  const auto found = logs_.find(key);
  if (found != logs_.end()) found->second.size = size;
}

void LogUploader::Ended(const RankKey& key) {
  {
    MutexLock lock(mutex_);
    const auto found = logs_.find(key);
    if (found == logs_.end()) return;
    found->second.ended = true;
    hurry_ = true;
  }
  changed_.NotifyAll();
}

bool LogUploader::WaitUntilStored(absl::Duration timeout) {
  const auto deadline = SteadyAfter(timeout);
  MutexLock lock(mutex_);
  hurry_ = true;
  changed_.NotifyAll();
  const auto unfinished = [this]() EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::any_of(logs_.begin(), logs_.end(), [](const auto& entry) { return entry.second.ended; });
  };
  while (unfinished()) {
    if (!changed_.WaitUntil(mutex_, deadline) && unfinished()) return false;
  }
  return true;
}

void LogUploader::Run() {
  absl::Duration wait = options_.interval;
  for (;;) {
    {
      const auto deadline = SteadyAfter(wait);
      MutexLock lock(mutex_);
      while (!stopping_ && !hurry_ && changed_.WaitUntil(mutex_, deadline)) {
      }
      if (stopping_) return;
      hurry_ = false;
    }
    const bool reached = UploadRound();
    DropFinished();
    changed_.NotifyAll();
    wait = reached ? options_.interval : std::min(wait * 2, options_.backoff_max);
  }
}

bool LogUploader::UploadRound() {
  std::vector<std::pair<RankKey, Log>> work;
  {
    MutexLock lock(mutex_);
    for (const auto& [key, log] : logs_) {
      if (log.size > log.stored) work.emplace_back(key, log);
    }
  }
  for (const auto& [key, log] : work) {
    int64_t stored = 0;
    const grpc::Status status = Upload(key, log, &stored);
    TakeResult(key, log, status, stored);
    if (Unreachable(status)) return false;
  }
  return true;
}

grpc::Status LogUploader::Upload(const RankKey& key, const Log& log, int64_t* stored) {
  const UniqueFd file(open(log.path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return grpc::Status(grpc::StatusCode::DATA_LOSS, "the spool file is gone");
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(options_.call_deadline));
  Authorize(options_.token, &context);
  {
    MutexLock lock(mutex_);
    if (stopping_) return grpc::Status(grpc::StatusCode::CANCELLED, "the daemon is stopping");
    call_ = &context;
  }
  v1::UploadLogsResponse response;
  auto writer = stub_->UploadLogs(&context, &response);
  v1::UploadLogsRequest request;
  request.set_worker_id(options_.worker_id);
  request.set_job_id(key.job_id);
  request.set_attempt(key.attempt);
  request.set_rank(key.rank);
  std::string buffer;
  const int64_t end = std::min(log.size, log.stored + kCallBytesMax);
  for (int64_t offset = log.stored; offset < end; offset += static_cast<int64_t>(buffer.size())) {
    buffer.resize(std::min(kChunkBytes, static_cast<size_t>(end - offset)));
    const ssize_t got = pread(file.get(), buffer.data(), buffer.size(), offset);
    if (got <= 0) break;
    buffer.resize(static_cast<size_t>(got));
    request.set_offset(offset);
    request.set_data(buffer);
    if (!writer->Write(request)) break;
  }
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  MutexLock lock(mutex_);
  call_ = nullptr;
  *stored = response.stored_bytes();
  return status;
}

void LogUploader::TakeResult(const RankKey& key, const Log& sent, const grpc::Status& status, int64_t stored) {
  if (Unreachable(status)) return;
  MutexLock lock(mutex_);
  const auto found = logs_.find(key);
  if (found == logs_.end()) return;
  Log& log = found->second;
  const bool advanced = status.ok() && stored > sent.stored;
  log.fruitless_calls = advanced ? 0 : log.fruitless_calls + 1;
  if (status.ok()) log.stored = std::clamp<int64_t>(stored, 0, log.size);
  if (log.fruitless_calls < kFruitlessCallsMax) return;
  spdlog::warn("gave up the log of {} at byte {}: {}", ToString(key), log.stored,
               status.ok() ? "the server does not store more" : status.error_message());
  log.stored = INT64_MAX;
}

void LogUploader::DropFinished() {
  std::vector<std::string> folders;
  {
    MutexLock lock(mutex_);
    size_t ended = 0;
    auto oldest = logs_.end();
    for (auto it = logs_.begin(); it != logs_.end();) {
      if (it->second.ended && it->second.stored >= it->second.size) {
        folders.push_back(it->second.folder);
        it = logs_.erase(it);
        continue;
      }
      if (it->second.ended) {
        ++ended;
        if (oldest == logs_.end() || it->second.age < oldest->second.age) oldest = it;
      }
      ++it;
    }
    if (ended > kEndedMax) {
      spdlog::warn("gave up the log of {}: too many logs wait for the server", ToString(oldest->first));
      folders.push_back(oldest->second.folder);
      logs_.erase(oldest);
    }
  }
  for (const std::string& folder : folders) {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
}

}  // namespace longspan::worker
