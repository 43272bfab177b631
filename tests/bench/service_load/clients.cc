#include "tests/bench/service_load/clients.h"

#include <fmt/format.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "tests/bench/service_load/connection.h"

namespace longspan::load {
namespace {

constexpr int64_t kClientsPerConnection = 8;
constexpr std::chrono::seconds kCallTimeout(60);

// Everything of one Submit; it waits until the last call has ended.
class Submission {
 public:
  Submission(const std::string& address, const SubmitLoad& load) : load_(load) {
    for (int64_t i = 0; i < (load.clients + kClientsPerConnection - 1) / kClientsPerConnection; ++i) {
      stubs_.push_back(v1::TrainingService::NewStub(Connect(address)));
    }
  }

  nlohmann::json Run() {
    const absl::Time start = absl::Now();
    if (load_.per_second > 0) {
      for (int64_t i = 0; i < load_.count; ++i) {
        const absl::Time due = start + absl::Seconds(static_cast<double>(i) / load_.per_second);
        std::this_thread::sleep_for(absl::ToChronoNanoseconds(due - absl::Now()));
        SendNext(i, false);
      }
    } else {
      for (int64_t i = 0; i < std::min(load_.clients, load_.count); ++i) SendNext(i, true);
    }
    MutexLock lock(mutex_);
    while (answered_ < load_.count) all_answered_.Wait(mutex_);
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    nlohmann::json failures = nlohmann::json::object();
    for (const auto& [code, count] : failures_) failures[std::to_string(code)] = count;
    return {{"seconds", seconds},
            {"per_second", static_cast<double>(load_.count) / seconds},
            {"latency_ms", latency_.ToJson()},
            {"failures", failures},
            {"job_ids", job_ids_}};
  }

 private:
  struct Call {
    grpc::ClientContext context;
    v1::SubmitJobRequest request;
    v1::SubmitJobResponse response;
    absl::Time sent;
  };

  void SendNext(int64_t client, bool again) {
    const int64_t number = next_++;
    if (number >= load_.count) return;
    auto* call = new Call;
    call->request.set_request_id(fmt::format("{}-{}", load_.request_prefix, number));
    *call->request.mutable_spec() = load_.specs[number % load_.specs.size()];
    call->request.mutable_spec()->set_name(fmt::format("{}-{}", load_.request_prefix, number));
    call->context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
    call->sent = absl::Now();
    stubs_[client % stubs_.size()]->async()->SubmitJob(&call->context, &call->request, &call->response,
                                                       [this, call, client, again](const grpc::Status& status) {
                                                         const std::unique_ptr<Call> owned(call);
                                                         if (again) SendNext(client, true);
                                                         Take(*owned, status);
                                                       });
  }

  void Take(const Call& call, const grpc::Status& status) {
    const absl::Duration took = absl::Now() - call.sent;
    MutexLock lock(mutex_);
    if (status.ok()) {
      latency_.Add(took);
      job_ids_.push_back(call.response.job().job_id());
    } else {
      ++failures_[status.error_code()];
    }
    if (++answered_ == load_.count) all_answered_.NotifyAll();
  }

  const SubmitLoad& load_;
  std::vector<std::unique_ptr<v1::TrainingService::Stub>> stubs_;
  std::atomic<int64_t> next_{0};
  Mutex mutex_;
  CondVar all_answered_;
  int64_t answered_ GUARDED_BY(mutex_) = 0;
  std::map<int, int64_t> failures_ GUARDED_BY(mutex_);
  Latencies latency_ GUARDED_BY(mutex_);
  std::vector<std::string> job_ids_ GUARDED_BY(mutex_);
};

absl::Time TimeOf(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

}  // namespace

nlohmann::json Submit(const std::string& address, const SubmitLoad& load) { return Submission(address, load).Run(); }

class Watchers::Stream final : public grpc::ClientReadReactor<v1::WatchJobResponse> {
 public:
  Stream(Watchers* watchers, const std::string& job_id, bool reads)
      : watchers_(watchers), reads_(reads), stub_(v1::TrainingService::NewStub(Connect(watchers->address_))) {
    request_.set_job_id(job_id);
    stub_->async()->WatchJob(&context_, &request_, this);
    if (!reads_) AddHold();  // it will read from another thread
    if (reads_) StartRead(&message_);
    StartCall();
  }

  void BeginReading() {
    if (std::exchange(reads_, true)) return;
    StartRead(&message_);
    RemoveHold();
  }
  void Cancel() {
    context_.TryCancel();
    BeginReading();
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;
    const absl::Time now = absl::Now();
    {
      MutexLock lock(watchers_->mutex_);
      ++watchers_->messages_;
      if (message_.has_progress()) {
        const absl::Time made = TimeOf(message_.progress().time());
        if (made >= watchers_->since_) watchers_->delay_.Add(now - made);
      }
    }
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    MutexLock lock(watchers_->mutex_);
    const bool slow = status.error_message().find("took nothing") != std::string::npos;
    ++watchers_->endings_[fmt::format("{}{}", static_cast<int>(status.error_code()), slow ? " READER_TOO_SLOW" : "")];
    --watchers_->open_;
    watchers_->ended_.NotifyAll();
  }

  Watchers* const watchers_;
  bool reads_;
  std::unique_ptr<v1::TrainingService::Stub> stub_;
  grpc::ClientContext context_;
  v1::WatchJobRequest request_;
  v1::WatchJobResponse message_;
};

Watchers::Watchers(std::string address) : address_(std::move(address)) {}

Watchers::~Watchers() {
  for (const auto& stream : streams_) stream->Cancel();
  MutexLock lock(mutex_);
  while (open_ > 0) ended_.Wait(mutex_);
}

void Watchers::Open(const std::string& job_id, bool reads) {
  {
    MutexLock lock(mutex_);
    ++open_;
  }
  streams_.push_back(std::make_unique<Stream>(this, job_id, reads));
}

void Watchers::LetSilentRead() {
  for (const auto& stream : streams_) stream->BeginReading();
}

void Watchers::ResetStatistics() {
  MutexLock lock(mutex_);
  messages_ = 0;
  since_ = absl::Now();
  delay_ = Latencies();
}

nlohmann::json Watchers::Statistics() {
  MutexLock lock(mutex_);
  return {{"open", open_},
          {"messages", messages_},
          {"progress_delay_ms", delay_.ToJson()},
          {"ended", nlohmann::json(endings_)}};
}

}  // namespace longspan::load
