// Sends the logs of ranks to the server from their spool files, in its own thread.
//
// The server's answer says how much it has stored, and the next call goes on from there: a lost answer or a restarted
// server costs a repetition, never a hole. A rank's folder is deleted once its rank has ended and its log is stored
// whole, or when the server refuses it for good; of more than kEndedMax ended logs that cannot be sent the oldest is
// given up. Thread-safe.
#pragma once

#include <absl/time/time.h>
#include <grpcpp/channel.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "longspan/v1/fleet_service.grpc.pb.h"
#include "proto/support/mutex.h"
#include "worker/daemon/rank_key.h"

namespace longspan::worker {

class LogUploader {
 public:
  static constexpr size_t kEndedMax = 64;
  static constexpr size_t kChunkBytes = 256 * 1024;
  static constexpr int64_t kCallBytesMax = 8 << 20;

  struct Options {
    std::string worker_id;
    std::string token;
    absl::Duration interval = absl::Milliseconds(500);  // between looks at growing logs
    absl::Duration call_deadline = absl::Seconds(30);
    absl::Duration backoff_max = absl::Seconds(10);
  };

  LogUploader(Options options, const std::shared_ptr<grpc::ChannelInterface>& channel);
  // Stops at once.
  ~LogUploader();

  // A rank whose log is the file `log_path` in `folder`.
  void Add(const RankKey& key, const std::string& folder, const std::string& log_path);
  // The log has so many bytes. May be called often.
  void Grew(const RankKey& key, int64_t size);
  // The log is complete.
  void Ended(const RankKey& key);

  // Waits until every ended log is stored. False when `timeout` passed before.
  bool WaitUntilStored(absl::Duration timeout);

 private:
  struct Log {
    std::string folder;
    std::string path;
    int64_t size = 0;
    int64_t stored = 0;
    bool ended = false;
    int fruitless_calls = 0;
    uint64_t age = 0;
  };

  void Run();
  // False when the server could not be reached.
  bool UploadRound();
  grpc::Status Upload(const RankKey& key, const Log& log, int64_t* stored);
  void TakeResult(const RankKey& key, const Log& sent, const grpc::Status& status, int64_t stored);
  void DropFinished();

  const Options options_;
  const std::unique_ptr<v1::FleetService::Stub> stub_;
  Mutex mutex_;
  CondVar changed_;
  std::map<RankKey, Log> logs_ GUARDED_BY(mutex_);
  bool stopping_ GUARDED_BY(mutex_) = false;
  bool hurry_ GUARDED_BY(mutex_) = false;
  uint64_t clock_ GUARDED_BY(mutex_) = 0;
  grpc::ClientContext* call_ GUARDED_BY(mutex_) = nullptr;
  std::thread thread_;
};

}  // namespace longspan::worker
