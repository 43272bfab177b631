#include "server/scheduler/order.h"

#include <algorithm>
#include <queue>
#include <tuple>

namespace longspan::scheduler {
namespace {

// Slot-seconds of a gang that runs for `duration` from now.
double Charge(int64_t slots, absl::Duration duration, const Options& options) {
  const absl::Duration ahead = std::clamp(duration, absl::ZeroDuration(), options.usage_half_life);
  return static_cast<double>(slots) * absl::ToDoubleSeconds(ahead);
}

struct Share {
  double weight = 1;
  double slot_seconds = 0;  // had and promised
};

void Promise(const WaitingJob& job, const Options& options, Share& share) {
  if (!job.sizes.empty()) share.slot_seconds += Charge(job.sizes.back(), job.estimate, options);
}

std::map<std::string, Share> SharesNow(const Snapshot& snapshot, absl::Time now, const Options& options) {
  std::map<std::string, Share> shares;
  for (const auto& [name, queue] : snapshot.queues) shares[name] = {queue.weight, queue.used_slot_seconds};
  for (const RunningGang& gang : snapshot.gangs) {
    const int64_t slots = static_cast<int64_t>(gang.ranks.size());
    shares[gang.queue].slot_seconds += Charge(slots, gang.expected_end - now, options);
  }
  return shares;
}

// Jobs of one queue and one priority, and what the queue had before the next of them.
struct Line {
  std::vector<const WaitingJob*> jobs;  // by submit time, id
  size_t next = 0;
  Share* share = nullptr;

  double Had() const { return share->slot_seconds / share->weight; }
  const WaitingJob& Head() const { return *jobs[next]; }
};

struct LaterLine {
  bool operator()(const Line* a, const Line* b) const {
    return std::make_tuple(a->Had(), a->Head().submit_time, std::cref(a->Head().id)) >
           std::make_tuple(b->Had(), b->Head().submit_time, std::cref(b->Head().id));
  }
};

// Only the line on top changes, between its pop and its push, so the heap stays one.
void Merge(std::map<std::string, Line>& lines, const Options& options, std::vector<const WaitingJob*>& order) {
  std::priority_queue<Line*, std::vector<Line*>, LaterLine> heap;
  for (auto& [name, line] : lines) heap.push(&line);
  while (!heap.empty()) {
    Line* line = heap.top();
    heap.pop();
    const WaitingJob& job = line->Head();
    order.push_back(&job);
    Promise(job, options, *line->share);
    if (++line->next < line->jobs.size()) heap.push(line);
  }
}

}  // namespace

std::vector<const WaitingJob*> OrderQueue(const Snapshot& snapshot, absl::Time now, const Options& options) {
  std::map<std::string, Share> shares = SharesNow(snapshot, now, options);
  std::vector<const WaitingJob*> jobs;
  jobs.reserve(snapshot.jobs.size());
  for (const WaitingJob& job : snapshot.jobs) jobs.push_back(&job);
  // The oldest first, so those that have waited long enough stand at the front of their priority.
  std::sort(jobs.begin(), jobs.end(), [](const WaitingJob* a, const WaitingJob* b) {
    return std::make_tuple(-a->priority, a->submit_time, std::cref(a->id)) <
           std::make_tuple(-b->priority, b->submit_time, std::cref(b->id));
  });
  std::vector<const WaitingJob*> order;
  order.reserve(jobs.size());
  for (size_t begin = 0; begin < jobs.size();) {
    std::map<std::string, Line> lines;
    size_t end = begin;
    for (; end < jobs.size() && jobs[end]->priority == jobs[begin]->priority &&
           now - jobs[end]->submit_time >= options.patience;
         ++end) {
      order.push_back(jobs[end]);
      Promise(*jobs[end], options, shares[jobs[end]->queue]);
    }
    if (end > begin) {
      begin = end;
      continue;
    }
    for (; end < jobs.size() && jobs[end]->priority == jobs[begin]->priority; ++end) {
      Line& line = lines[jobs[end]->queue];
      line.share = &shares[jobs[end]->queue];
      line.jobs.push_back(jobs[end]);
    }
    Merge(lines, options, order);
    begin = end;
  }
  return order;
}

}  // namespace longspan::scheduler
