#include "worker/daemon/trainer_check.h"

#include <absl/strings/str_join.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "worker/daemon/child_process.h"

namespace longspan::worker {
namespace {

constexpr size_t kAnswerBytesMax = 64 * 1024;
constexpr const char* kWhatWouldBeRight =
    "give --trainer a longspan-trainer of the preset cuda, or --slots N to offer N CPU slots instead";

absl::Status No(const TrainerQuestion& question, const std::string& why) {
  return absl::InvalidArgumentError(fmt::format("{} cannot train on the {} GPUs that this worker would offer: {}",
                                                question.trainer, question.gpus.size(), why));
}

// The last line of it that is a JSON object.
std::optional<nlohmann::json> ObjectIn(std::string_view printed) {
  std::optional<nlohmann::json> found;
  while (!printed.empty()) {
    const size_t end = printed.find('\n');
    const std::string_view line = printed.substr(0, end);
    nlohmann::json parsed = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_object()) found = std::move(parsed);
    if (end == std::string_view::npos) break;
    printed.remove_prefix(end + 1);
  }
  return found;
}

std::string TextOf(const nlohmann::json& object, const char* key) {
  return object.is_object() && object.contains(key) && object[key].is_string() ? object[key].get<std::string>()
                                                                               : "unknown";
}

std::string LastLine(std::string_view printed) {
  while (!printed.empty() && printed.back() == '\n') printed.remove_suffix(1);
  return std::string(printed.substr(printed.rfind('\n') + 1));  // npos + 1 is 0
}

// What it prints until it ends or `deadline` passes. Null: it did not end.
std::optional<ChildProcess::End> ReadUntilEnd(ChildProcess& child, absl::Time deadline, std::string* printed) {
  char buffer[4096];
  const auto drain = [&] {
    ssize_t size = 0;
    while ((size = read(child.output_fd(), buffer, sizeof buffer)) > 0) {
      if (printed->size() < kAnswerBytesMax) printed->append(buffer, static_cast<size_t>(size));
    }
    return size < 0 && (errno == EAGAIN || errno == EINTR);  // still open
  };
  bool open = true;
  while (absl::Now() < deadline) {
    // poll passes over a negative descriptor.
    pollfd fds[] = {{child.end_fd(), POLLIN, 0}, {open ? child.output_fd() : -1, POLLIN, 0}};
    const auto left = absl::ToInt64Milliseconds(deadline - absl::Now());
    poll(fds, 2, static_cast<int>(std::clamp<int64_t>(left, 1, 1000)));
    if (fds[1].revents != 0) open = drain();
    if (fds[0].revents == 0) continue;
    if (open) drain();
    return child.TryReap();
  }
  return std::nullopt;
}

}  // namespace

absl::Status JudgeTrainerAnswer(const TrainerQuestion& question, std::string_view printed) {
  const auto answer = ObjectIn(printed);
  if (!answer || !answer->contains("cuda") || !(*answer)["cuda"].is_boolean()) {
    return No(question, fmt::format("`version --json` does not say so, but \"{}\"; is it a longspan-trainer of this "
                                    "version?",
                                    LastLine(printed)));
  }
  if (!(*answer)["cuda"].get<bool>()) {
    return No(question, fmt::format("it was built without CUDA; {}", kWhatWouldBeRight));
  }
  const nlohmann::json gpus = answer->value("gpus", nlohmann::json::array());
  if (!gpus.is_array() || gpus.size() != question.gpus.size()) {
    return No(question, fmt::format("it sees {} of {}; do driver and CUDA runtime fit each other, and may this user "
                                    "open /dev/nvidia*?",
                                    gpus.is_array() ? gpus.size() : 0, absl::StrJoin(question.gpus, ", ")));
  }
  for (size_t index = 0; index < gpus.size(); ++index) {
    const nlohmann::json& gpu = gpus[index];
    if (gpu.is_object() && gpu.contains("usable") && gpu["usable"] == true) continue;
    return No(question, fmt::format("{} is {} of compute capability {}, and 8.0 is the least; leave it out of "
                                    "CUDA_VISIBLE_DEVICES",
                                    question.gpus[index], TextOf(gpu, "name"), TextOf(gpu, "compute_capability")));
  }
  return absl::OkStatus();
}

absl::Status AskTrainer(const TrainerQuestion& question) {
  ChildOptions options;
  options.arguments = {question.trainer, "version", "--json"};
  options.environment = question.environment;
  options.environment.push_back("CUDA_VISIBLE_DEVICES=" + absl::StrJoin(question.gpus, ","));
  auto child = ChildProcess::Start(options);
  if (!child.ok()) return child.status();
  std::string printed;
  const auto end = ReadUntilEnd(**child, absl::Now() + question.deadline, &printed);
  if (!end) {
    return No(question, fmt::format("`version --json` did not end within {}; a driver that hangs?",
                                    absl::FormatDuration(question.deadline)));
  }
  if (end->exit_code != 0) {
    const std::string how = end->exit_code < 0 ? fmt::format("was killed by signal {}", end->signal)
                                               : fmt::format("ended with code {}", end->exit_code);
    return No(question, fmt::format("`version --json` {}: \"{}\"; {}", how, LastLine(printed), kWhatWouldBeRight));
  }
  return JudgeTrainerAnswer(question, printed);
}

}  // namespace longspan::worker
