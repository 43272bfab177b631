#include "worker/daemon/exit_classification.h"

#include <csignal>
#include <string_view>

#include <fmt/format.h>

namespace longspan::worker {
namespace {

v1::FailureClass ClassOf(std::string_view name) {
  if (name == "user") return v1::FAILURE_CLASS_USER;
  if (name == "resource") return v1::FAILURE_CLASS_RESOURCE;
  if (name == "infrastructure") return v1::FAILURE_CLASS_INFRASTRUCTURE;
  return v1::FAILURE_CLASS_INTERNAL;
}

v1::FailureClass ClassOfCode(int code) {
  switch (code) {
    case lines::kExitBadSpec:
    case lines::kExitUserData:
      return v1::FAILURE_CLASS_USER;
    case lines::kExitResource:
      return v1::FAILURE_CLASS_RESOURCE;
    case lines::kExitInfrastructure:
      return v1::FAILURE_CLASS_INFRASTRUCTURE;
    case lines::kExitInternal:
      return v1::FAILURE_CLASS_INTERNAL;
  }
  return v1::FAILURE_CLASS_INTERNAL;
}

std::string SentenceOfSignal(int signal) {
  const std::string_view guess = signal == SIGKILL ? " (out of memory?)" : "";
  return fmt::format("killed by signal {}{}", signal, guess);
}

// The last whole lines within `kLogTailBytesMax` bytes, as valid UTF-8: protobuf strings carry nothing else.
std::string CleanTail(std::string_view text) {
  if (text.size() > kLogTailBytesMax) {
    text.remove_prefix(text.size() - kLogTailBytesMax);
    const size_t newline = text.find('\n');
    if (newline != std::string_view::npos && newline + 1 < text.size()) text.remove_prefix(newline + 1);
  }
  std::string clean;
  clean.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const size_t length = lead < 0x80 ? 1 : lead >= 0xF0 && lead < 0xF5 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 0;
    bool valid = length != 0 && lead < 0xF5 && at + length <= text.size();
    for (size_t i = 1; valid && i < length; ++i) valid = (static_cast<unsigned char>(text[at + i]) & 0xC0) == 0x80;
    // Overlong forms, surrogates and what lies above U+10FFFF.
    if (valid && length > 2) {
      const auto second = static_cast<unsigned char>(text[at + 1]);
      valid = !(lead == 0xE0 && second < 0xA0) && !(lead == 0xED && second > 0x9F) &&
              !(lead == 0xF0 && second < 0x90) && !(lead == 0xF4 && second > 0x8F);
    }
    if (valid) {
      clean.append(text.substr(at, length));
      at += length;
    } else {
      clean.push_back('?');
      ++at;
    }
  }
  return clean;
}

void Fail(v1::RankExit* exit, v1::FailureClass failure_class, std::string message) {
  exit->set_failure_class(failure_class);
  exit->set_message(std::move(message));
}

}  // namespace

v1::RankExit ClassifyExit(const ProcessEnd& end, const LastWords& words) {
  v1::RankExit exit;
  exit.set_exit_code(end.signal != 0 ? -1 : end.exit_code);
  exit.set_signal(end.signal);
  exit.set_log_tail(CleanTail(end.log_tail));
  const bool said_stopped = words.done.has_value() && words.done->stopped;
  if (end.signal == 0 && end.exit_code == lines::kExitStopped) {
    exit.set_stopped(true);
  } else if (end.signal == 0 && end.exit_code == lines::kExitDone && words.done.has_value()) {
    exit.set_stopped(said_stopped);
  } else if (!words.killed_because.empty()) {
    Fail(&exit, v1::FAILURE_CLASS_INFRASTRUCTURE, fmt::format("killed by its worker: {}", words.killed_because));
  } else if (words.failed.has_value()) {
    Fail(&exit, ClassOf(words.failed->failure_class), CleanTail(words.failed->message));
  } else if (end.signal != 0) {
    Fail(&exit, v1::FAILURE_CLASS_INFRASTRUCTURE, SentenceOfSignal(end.signal));
  } else if (end.exit_code == lines::kExitDone) {
    Fail(&exit, v1::FAILURE_CLASS_INTERNAL, "ended with exit code 0 without saying that it was done");
  } else {
    Fail(&exit, ClassOfCode(end.exit_code), fmt::format("ended with exit code {} without saying why", end.exit_code));
  }
  return exit;
}

}  // namespace longspan::worker
