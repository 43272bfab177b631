#include "server/scheduler/feasibility.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace longspan::scheduler {
namespace {

constexpr char kGpuLabel[] = "gpu";

bool SameLetter(char a, char b) {
  return std::tolower(static_cast<unsigned char>(a)) == std::tolower(static_cast<unsigned char>(b));
}

}  // namespace

bool IsOpen(const WorkerSlots& worker) { return worker.up && !worker.draining; }

bool IsExpectedOpen(const WorkerSlots& worker) { return (worker.up || worker.expected) && !worker.draining; }

bool HasLabels(const Requirements& requirements, const WorkerSlots& worker) {
  return std::all_of(requirements.labels.begin(), requirements.labels.end(), [&](const auto& label) {
    if (label.first == kGpuLabel) return true;
    const auto found = worker.labels.find(label.first);
    return found != worker.labels.end() && found->second == label.second;
  });
}

bool HasDevice(const Requirements& requirements, const SlotKind& kind) {
  const auto gpu = requirements.labels.find(kGpuLabel);
  if (gpu == requirements.labels.end()) return true;
  const std::string& part = gpu->second;
  return std::search(kind.device.begin(), kind.device.end(), part.begin(), part.end(), SameLetter) != kind.device.end();
}

bool HasMemory(const Requirements& requirements, const SlotKind& kind) {
  return kind.memory_bytes >= requirements.memory_bytes_min;
}

std::string Text(const Requirements& requirements) {
  std::string text;
  for (const auto& [key, value] : requirements.labels)
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", key, value);
  if (requirements.memory_bytes_min > 0) {
    text += fmt::format("{}{:.1f} GiB a slot", text.empty() ? "" : ", ",
                        static_cast<double>(requirements.memory_bytes_min) / (1 << 30));
  }
  return text;
}

}  // namespace longspan::scheduler
