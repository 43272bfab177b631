#include "worker/daemon/state_dir.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

namespace longspan::worker {
namespace fs = std::filesystem;
namespace {

bool IsPlainName(const std::string& name) {
  const auto plain = [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; };
  return !name.empty() && name.size() <= 128 && name[0] != '.' && std::all_of(name.begin(), name.end(), plain);
}

}  // namespace

absl::StatusOr<std::unique_ptr<StateDir>> StateDir::Open(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return absl::UnavailableError(fmt::format("cannot make {}: {}", path, error.message()));
  std::unique_ptr<StateDir> dir(new StateDir(fs::absolute(path).string()));
  const std::string lock_path = dir->path_ + "/lock";
  dir->lock_.Reset(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640));
  if (!dir->lock_.valid())
    return absl::UnavailableError(fmt::format("cannot open {}: {}", lock_path, std::strerror(errno)));
  if (flock(dir->lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(fmt::format("{} is in use by another longspan-worker", dir->path_));
  }
  fs::remove_all(dir->path_ + "/ranks", error);
  if (!error) fs::create_directories(dir->path_ + "/ranks", error);
  if (error) return absl::UnavailableError(fmt::format("cannot clean {}/ranks: {}", dir->path_, error.message()));
  return dir;
}

absl::StatusOr<std::string> StateDir::MakeRankFolder(const RankKey& key) {
  if (!IsPlainName(key.job_id)) return absl::InvalidArgumentError(fmt::format("'{}' is no job id", key.job_id));
  const std::string folder = fmt::format("{}/ranks/{}.attempt-{}.rank-{}", path_, key.job_id, key.attempt, key.rank);
  std::error_code error;
  fs::remove_all(folder, error);
  fs::create_directories(folder, error);
  if (error) return absl::UnavailableError(fmt::format("cannot make {}: {}", folder, error.message()));
  return folder;
}

absl::Status WriteFileWhole(const std::string& path, std::string_view text) {
  const std::string temporary = path + ".new";
  const UniqueFd fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640));
  if (!fd.valid()) return absl::UnavailableError(fmt::format("cannot create {}: {}", temporary, std::strerror(errno)));
  while (!text.empty()) {
    const ssize_t written = write(fd.get(), text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0)
      return absl::UnavailableError(fmt::format("cannot write {}: {}", temporary, std::strerror(errno)));
    text.remove_prefix(static_cast<size_t>(written));
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(fmt::format("cannot rename to {}: {}", path, std::strerror(errno)));
  }
  return absl::OkStatus();
}

bool LiesBelow(const std::string& path, const std::string& root) {
  std::error_code error;
  const fs::path real_root = fs::weakly_canonical(root, error);
  if (error || !real_root.is_absolute()) return false;
  const fs::path real_path = fs::weakly_canonical(path, error);
  if (error || !real_path.is_absolute()) return false;
  const auto [root_end, path_at] =
      std::mismatch(real_root.begin(), real_root.end(), real_path.begin(), real_path.end());
  // A root written with a closing slash has an empty last part.
  return root_end == real_root.end() || root_end->empty();
}

}  // namespace longspan::worker
