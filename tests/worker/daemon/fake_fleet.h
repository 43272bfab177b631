// A FleetService in this process: says what the test wants, remembers what the daemon reports, and breaks on request.
#pragma once

#include <absl/time/time.h>
#include <fmt/format.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "longspan/v1/fleet_service.grpc.pb.h"
#include "worker/daemon/rank_key.h"

namespace longspan::worker {

class FakeFleet final : public v1::FleetService::Service {
 public:
  // How long a call is held while nothing changes.
  static constexpr std::chrono::milliseconds kHold{300};

  FakeFleet() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = fmt::format("127.0.0.1:{}", port);
  }
  ~FakeFleet() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
    server_->Wait();
  }

  const std::string& address() const { return address_; }

  // ---- what the test says; each takes effect at once ----

  void Want(const v1::DesiredRank& desired) {
    Change([&] { desired_[KeyOf(desired)] = desired; });
  }
  void Unwant(const RankKey& key) {
    Change([&] { desired_.erase(key); });
  }
  void Fence(const RankKey& key) {
    Change([&] { fenced_[key] = true; });
  }
  void SetLease(absl::Duration lease) {
    Change([&] { lease_ = lease; });
  }
  // Reports are taken in, but their answers get lost.
  void LoseAnswers(int count) {
    Change([&] { answers_to_lose_ = count; });
  }
  void SetUnreachable(bool unreachable) {
    Change([&] { unreachable_ = unreachable; });
  }
  // Of each UploadLogs call only so many bytes are stored.
  void StoreAtMostPerCall(int64_t bytes) {
    Change([&] { stored_per_call_max_ = bytes; });
  }

  // ---- what the daemon said ----

  // Waits until the newest reports satisfy the condition; false after twenty seconds.
  bool WaitFor(const std::function<bool(const FakeFleet&)>& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return condition(*this); });
  }
  bool WaitUntil(std::chrono::steady_clock::time_point deadline,
                 const std::function<bool(const FakeFleet&)>& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, deadline, [&] { return condition(*this); });
  }
  template <class Function>
  auto Locked(Function function) {
    std::lock_guard lock(mutex_);
    return function(*this);
  }

  // Under the lock: in conditions and in Locked.
  v1::RankReport Report(const RankKey& key) const {
    const auto found = reports_.find(key);
    return found == reports_.end() ? v1::RankReport() : found->second;
  }
  bool Exited(const RankKey& key) const { return Report(key).state() == v1::RankReport::STATE_EXITED; }
  bool Running(const RankKey& key) const { return Report(key).state() == v1::RankReport::STATE_RUNNING; }
  bool InNewestReport(const RankKey& key) const {
    for (const auto& rank : newest_.ranks()) {
      if (KeyOf(rank) == key) return true;
    }
    return false;
  }
  std::string Log(const RankKey& key) const {
    const auto found = logs_.find(key);
    return found == logs_.end() ? "" : found->second;
  }
  const v1::SynchronizeRequest& newest() const { return newest_; }
  int64_t calls() const { return calls_; }
  int64_t samples(const RankKey& key) const {
    const auto found = samples_.find(key);
    return found == samples_.end() ? 0 : found->second;
  }

 private:
  template <class Function>
  void Change(Function function) {
    {
      std::lock_guard lock(mutex_);
      function();
      ++version_;
    }
    changed_.notify_all();
  }

  grpc::Status Synchronize(grpc::ServerContext* context, const v1::SynchronizeRequest* request,
                           v1::SynchronizeResponse* response) override {
    std::unique_lock lock(mutex_);
    ++calls_;
    const int64_t call = ++newest_call_;
    changed_.notify_all();
    if (unreachable_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the test says so");
    if (request->sequence() > newest_.sequence()) newest_ = *request;
    bool news = false;
    for (const auto& rank : request->ranks()) news |= TakeReport(rank, response);
    changed_.notify_all();
    if (answers_to_lose_ > 0) {
      --answers_to_lose_;
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the answer got lost");
    }
    // Long poll: until something changes, or a newer call comes.
    if (!news && request->desired_fingerprint() == Fingerprint()) {
      changed_.wait_for(lock, kHold, [&] {
        return stopping_ || newest_call_ > call || unreachable_ || request->desired_fingerprint() != Fingerprint();
      });
    }
    if (unreachable_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the test says so");
    for (const auto& [key, desired] : desired_) *response->add_desired_ranks() = desired;
    response->set_desired_fingerprint(Fingerprint());
    response->mutable_lease()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(lease_ % absl::Seconds(1))));
    response->mutable_lease()->set_seconds(absl::ToInt64Seconds(lease_));
    return grpc::Status::OK;
  }

  // True when there is something to acknowledge.
  bool TakeReport(const v1::RankReport& rank, v1::SynchronizeResponse* response) {
    const RankKey key = KeyOf(rank);
    v1::RankAcknowledgement* ack = response->add_acknowledged();
    ack->set_job_id(key.job_id);
    ack->set_attempt(key.attempt);
    ack->set_rank(key.rank);
    if (fenced_.contains(key)) {
      ack->set_fenced(true);
      return true;
    }
    reports_[key] = rank;
    int64_t& samples = samples_[key];
    for (const auto& sample : rank.samples()) samples = std::max(samples, sample.sequence());
    ack->set_sample_sequence(samples);
    for (const auto& checkpoint : rank.checkpoints()) ack->add_checkpoints(checkpoint.name());
    ack->set_evaluations(rank.evaluations_size());
    ack->set_artifacts(rank.artifacts_size());
    ack->set_exit(rank.has_exit());
    return rank.samples_size() > 0 || rank.checkpoints_size() > 0 || rank.has_exit();
  }

  std::string Fingerprint() const { return fmt::format("version-{}", version_); }

  grpc::Status UploadLogs(grpc::ServerContext* context, grpc::ServerReader<v1::UploadLogsRequest>* reader,
                          v1::UploadLogsResponse* response) override {
    int64_t taken = 0;
    for (v1::UploadLogsRequest request; reader->Read(&request);) {
      std::lock_guard lock(mutex_);
      if (unreachable_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the test says so");
      std::string& log = logs_[KeyOf(request)];
      const int64_t size = static_cast<int64_t>(log.size());
      if (request.offset() == size) {
        const size_t room = static_cast<size_t>(std::max<int64_t>(0, stored_per_call_max_ - taken));
        log.append(request.data(), 0, room);
        taken += static_cast<int64_t>(log.size()) - size;
      }
      response->set_stored_bytes(static_cast<int64_t>(log.size()));
    }
    changed_.notify_all();
    return grpc::Status::OK;
  }

  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RankKey, v1::DesiredRank> desired_;
  std::map<RankKey, bool> fenced_;
  std::map<RankKey, v1::RankReport> reports_;
  std::map<RankKey, int64_t> samples_;
  std::map<RankKey, std::string> logs_;
  v1::SynchronizeRequest newest_;
  absl::Duration lease_ = absl::Seconds(60);
  int64_t version_ = 0;
  int64_t calls_ = 0;
  int64_t newest_call_ = 0;
  int answers_to_lose_ = 0;
  int64_t stored_per_call_max_ = 1 << 30;
  bool unreachable_ = false;
  bool stopping_ = false;
};

}  // namespace longspan::worker
