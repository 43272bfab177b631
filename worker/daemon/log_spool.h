// The output of one rank on this machine's disk, from which it is uploaded.
//
// Writing never fails towards the trainer: a line longer than kLineBytesMax is cut, a log longer than `bytes_max` ends
// with a note, and bytes that the disk refuses are dropped and counted. Not thread-safe; other threads read the file up
// to size().
#pragma once

#include <absl/status/statusor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace longspan::worker {

class LogSpool {
 public:
  static constexpr size_t kLineBytesMax = 64 * 1024;
  static constexpr int64_t kBytesMax = 256LL << 20;

  // Creates the file, or empties it.
  static absl::StatusOr<std::unique_ptr<LogSpool>> Create(const std::string& path, int64_t bytes_max = kBytesMax);
  ~LogSpool();
  LogSpool(const LogSpool&) = delete;
  LogSpool& operator=(const LogSpool&) = delete;

  void Append(std::string_view bytes);

  // The last bytes that were appended, whatever became of them on disk.
  const std::string& tail() const { return tail_; }
  int64_t size() const { return size_.load(std::memory_order_acquire); }
  int64_t dropped_bytes() const { return dropped_bytes_; }
  const std::string& path() const { return path_; }

 private:
  LogSpool(std::string path, int fd, int64_t bytes_max) : path_(std::move(path)), fd_(fd), bytes_max_(bytes_max) {}
  void AppendPart(std::string_view part);
  void Write(std::string_view bytes);
  void Keep(std::string_view bytes);

  const std::string path_;
  const int fd_;
  const int64_t bytes_max_;
  std::atomic<int64_t> size_ = 0;
  size_t line_bytes_ = 0;
  bool full_ = false;
  int64_t dropped_bytes_ = 0;
  std::string tail_;
};

}  // namespace longspan::worker
