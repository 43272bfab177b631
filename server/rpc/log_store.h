// Logs of ranks as their daemons upload them: <storage>/jobs/<job>/logs/attempt-A/rank-R.log.
//
// The file's size is the only record of what is stored, so an upload resumes after a restart of either side.
// Thread-safe; calls block on the file system. Appends are not fsynced: a log may lose its end when the server's
// machine loses power.
//
// Past `bytes_max` a log ends with a marker line; more bytes are acknowledged and dropped, so that a daemon is never
// stuck.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace longspan::rpc {

struct RankLog {
  std::string job_id;
  int64_t attempt = 0;
  int64_t rank = 0;
};

struct LogLimits {
  int64_t bytes_max = int64_t{256} << 20;  // of one rank's log in one attempt
};

class LogStore {
 public:
  explicit LogStore(std::filesystem::path storage, LogLimits limits = {});

  // Stores `data`, which begins at `offset` of the rank's log. Bytes that are stored already are skipped. Returns how
  // many bytes of the log the daemon need not send again; less than `offset` when bytes before it are missing, and then
  // nothing is stored.
  absl::StatusOr<int64_t> Append(const RankLog& log, int64_t offset, std::string_view data);

  // At most `length` bytes from `offset`; empty at the end of what is stored, or when there is no such log yet.
  absl::StatusOr<std::string> Read(const RankLog& log, int64_t offset, int64_t length) const;

 private:
  std::filesystem::path PathOf(const RankLog& log) const;

  const std::filesystem::path storage_;
  const LogLimits limits_;
  // One writer per log; logs that share a lock only wait for each other.
  std::array<std::mutex, 16> locks_;
};

}  // namespace longspan::rpc
