#include "server/scheduler/order.h"

#include <algorithm>
#include <tuple>

namespace longspan::scheduler {

std::vector<const WaitingJob*> OrderQueue(const std::vector<WaitingJob>& jobs) {
  std::vector<const WaitingJob*> order;
  order.reserve(jobs.size());
  for (const WaitingJob& job : jobs) order.push_back(&job);
  std::sort(order.begin(), order.end(), [](const WaitingJob* a, const WaitingJob* b) {
    return std::make_tuple(-a->priority, a->submit_time, std::cref(a->id)) <
           std::make_tuple(-b->priority, b->submit_time, std::cref(b->id));
  });
  return order;
}

}  // namespace longspan::scheduler
