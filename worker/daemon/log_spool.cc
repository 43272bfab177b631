#include "worker/daemon/log_spool.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "worker/daemon/exit_classification.h"

namespace longspan::worker {

absl::StatusOr<std::unique_ptr<LogSpool>> LogSpool::Create(const std::string& path, int64_t bytes_max) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
  if (fd < 0) return absl::UnavailableError(fmt::format("cannot create {}: {}", path, std::strerror(errno)));
  return std::unique_ptr<LogSpool>(new LogSpool(path, fd, bytes_max));
}

LogSpool::~LogSpool() { close(fd_); }

void LogSpool::Append(std::string_view bytes) {
  while (!bytes.empty()) {
    const size_t newline = bytes.find('\n');
    const size_t length = newline == std::string_view::npos ? bytes.size() : newline + 1;
    AppendPart(bytes.substr(0, length));
    bytes.remove_prefix(length);
  }
}

// `part` has at most one newline, at its end.
void LogSpool::AppendPart(std::string_view part) {
  const bool ends = part.back() == '\n';
  const std::string_view text = ends ? part.substr(0, part.size() - 1) : part;
  const size_t room = line_bytes_ < kLineBytesMax ? kLineBytesMax - line_bytes_ : 0;
  Write(text.substr(0, room));
  if (text.size() > room) {
    dropped_bytes_ += static_cast<int64_t>(text.size() - room);
    if (line_bytes_ <= kLineBytesMax) Write(" [line cut at 64 KiB]");
    line_bytes_ = kLineBytesMax + 1;
  } else if (line_bytes_ <= kLineBytesMax) {
    line_bytes_ += text.size();
  }
  if (ends) {
    Write("\n");
    line_bytes_ = 0;
  }
}

void LogSpool::Write(std::string_view bytes) {
  Keep(bytes);
  const int64_t room = bytes_max_ - size();
  if (full_ || static_cast<int64_t>(bytes.size()) > room) {
    dropped_bytes_ += static_cast<int64_t>(bytes.size());
    if (full_) return;
    full_ = true;
    bytes = "\n[log cut: it is longer than the worker keeps]\n";
  }
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      dropped_bytes_ += static_cast<int64_t>(bytes.size());
      return;
    }
    bytes.remove_prefix(static_cast<size_t>(written));
    size_.fetch_add(written, std::memory_order_release);
  }
}

void LogSpool::Keep(std::string_view bytes) {
  tail_.append(bytes);
  if (tail_.size() > 2 * kLogTailBytesMax) tail_.erase(0, tail_.size() - kLogTailBytesMax);
}

}  // namespace longspan::worker
