#include "server/scheduler/wait_messages.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/scheduler/feasibility.h"

namespace longspan::scheduler {
namespace {

constexpr size_t kNamesBytesMax = 200;  // a few names are enough to see what is wrong

}  // namespace

std::string SlotsText(int64_t count) { return fmt::format("{} slot{}", count, count == 1 ? "" : "s"); }

std::string InText(absl::Duration from_now) {
  const int64_t minutes = std::max<int64_t>(1, absl::ToInt64Minutes(from_now));
  if (minutes < 60) return fmt::format("in {}m", minutes < 10 ? minutes : (minutes + 4) / 5 * 5);
  if (minutes < 48 * 60) return fmt::format("in {}h", (minutes + 30) / 60);
  return fmt::format("in {} days", (minutes + 12 * 60) / (24 * 60));
}

std::string ElsewhereText(const std::vector<WorkerSlots>& workers) {
  std::string text;
  for (const WorkerSlots& worker : workers) {
    if (IsOpen(worker)) continue;
    const auto here =
        std::count_if(worker.slots.begin(), worker.slots.end(), [](const WorkerSlot& slot) { return !slot.taken; });
    if (here == 0 || text.size() > kNamesBytesMax) continue;
    text += fmt::format(", {} on {} worker {}", here, worker.up ? "draining" : "unreachable", worker.id);
  }
  return text;
}

std::string DoesNotFitText(const WaitingJob& job, int64_t free_slots, const std::string& elsewhere) {
  const std::string required = Text(job.requirements);
  return fmt::format("needs {}{}, {} free{}", SlotsText(job.sizes.front()),
                     required.empty() ? "" : " (" + required + ")", free_slots, elsewhere);
}

std::string StoppingText(const std::vector<JobId>& jobs) {
  std::string names;
  for (const JobId& job : jobs) {
    if (names.size() > kNamesBytesMax) break;
    names += (names.empty() ? "" : ", ") + job.value();
  }
  return fmt::format("waits for {} to save a checkpoint and stop", names);
}

}  // namespace longspan::scheduler
