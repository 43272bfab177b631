// A folder of its own for each test, and ways to wait for processes.
#pragma once

#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace longspan::testing {

class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "longspan-worker-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::string path() const { return path_.string(); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

  // An executable shell script.
  std::string Script(const std::string& name, const std::string& body) const {
    const std::string path = *this / name;
    std::ofstream(path) << "#!/bin/sh\n" << body;
    chmod(path.c_str(), 0755);
    return path;
  }

 private:
  std::filesystem::path path_;
};

inline std::string ReadWholeFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// True when the process, any process, is gone or a zombie within ten seconds.
inline bool WaitUntilGone(pid_t pid) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return true;
  pollfd poll_fd{fd, POLLIN, 0};
  const bool gone = poll(&poll_fd, 1, 10'000) == 1;
  close(fd);
  return gone;
}

// Reads a blocking or non-blocking descriptor until `wanted` has come, its end, or ten seconds.
inline std::string ReadUntil(int fd, std::string_view wanted) {
  std::string text;
  while (text.find(wanted) == std::string::npos) {
    pollfd poll_fd{fd, POLLIN, 0};
    if (poll(&poll_fd, 1, 10'000) != 1) break;
    char buffer[4096];
    const ssize_t got = read(fd, buffer, sizeof buffer);
    if (got <= 0) break;
    text.append(buffer, static_cast<size_t>(got));
  }
  return text;
}

}  // namespace longspan::testing
