#include "server/rpc/queue_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "proto/jobfile/job_file.h"
#include "server/rpc/grpc_error.h"

namespace longspan::rpc {
namespace {

constexpr double kWeightMax = 1e6;
constexpr int64_t kCountMax = 1'000'000'000;
constexpr int64_t kRunTimeSecondsMax = int64_t{10} * 366 * 24 * 3600;
constexpr std::string_view kChangeable[] = {"weight", "slots_max", "queued_max", "run_time_default"};

class QueueCheck {
 public:
  explicit QueueCheck(const v1::UpdateQueueRequest& request) : request_(request), queue_(request.queue()) {}

  CheckedQueue Run() {
    if (!request_.has_queue()) {
      Add("queue", "is missing; say which queue, and how it shall be");
    } else {
      CheckName();
      CheckMask();
      if (Changes("weight")) TakeWeight();
      if (Changes("slots_max")) TakeLimit("slots_max", queue_.slots_max(), &event_.slots_max);
      if (Changes("queued_max")) TakeLimit("queued_max", queue_.queued_max(), &event_.waiting_max);
      if (Changes("run_time_default")) TakeRunTime();
    }
    if (!violations_.empty()) return {InvalidFields("the queue cannot be changed:", violations_), {}};
    return {grpc::Status::OK, std::move(event_)};
  }

 private:
  void Add(const std::string& field, const std::string& text) { violations_.push_back({field, text}); }

  bool Changes(std::string_view field) const {
    const auto& paths = request_.update_mask().paths();
    return paths.empty() || std::find(paths.begin(), paths.end(), field) != paths.end();
  }

  void CheckName() {
    jobfile::JobSpec spec;
    spec.queue = queue_.name();
    if (const std::string wrong = jobfile::CheckKey("queue", spec); !wrong.empty()) Add("queue.name", wrong);
    event_.name = queue_.name();
  }

  void CheckMask() {
    for (const std::string& path : request_.update_mask().paths()) {
      if (std::find(std::begin(kChangeable), std::end(kChangeable), path) != std::end(kChangeable)) continue;
      Add("update_mask",
          fmt::format("has \"{}\"; must be of weight, slots_max, queued_max and run_time_default", path.substr(0, 64)));
    }
  }

  void TakeWeight() {
    const double weight = queue_.weight();
    if (weight > 0 && weight <= kWeightMax) {
      event_.weight = weight;
    } else {
      Add("queue.weight", fmt::format("is {}; must be above 0 and at most {}", weight, kWeightMax));
    }
  }

  void TakeLimit(const std::string& field, int64_t limit, std::optional<int64_t>* out) {
    if (limit >= 0 && limit <= kCountMax) {
      *out = limit;
    } else {
      Add("queue." + field, fmt::format("is {}; must be 0, for no limit, to {}", limit, kCountMax));
    }
  }

  void TakeRunTime() {
    const google::protobuf::Duration& time = queue_.run_time_default();
    const bool good = queue_.has_run_time_default() && time.seconds() >= 1 && time.seconds() <= kRunTimeSecondsMax &&
                      time.nanos() >= 0 && time.nanos() < 1'000'000'000;
    if (good) {
      event_.run_time_default = absl::Seconds(time.seconds()) + absl::Nanoseconds(time.nanos());
    } else {
      Add("queue.run_time_default",
          fmt::format(
              "{}; must be 1 to {} seconds",
              queue_.has_run_time_default() ? fmt::format("is {} seconds", time.seconds()) : std::string("is missing"),
              kRunTimeSecondsMax));
    }
  }

  const v1::UpdateQueueRequest& request_;
  const v1::Queue& queue_;
  core::QueueConfigured event_;
  std::vector<FieldViolation> violations_;
};

}  // namespace

v1::Queue ToMessage(const core::QueueView& view) {
  const core::Queue& queue = view.queue;
  v1::Queue message;
  message.set_name(queue.name);
  message.set_weight(queue.weight);
  message.set_slots_max(queue.slots_max);
  message.set_queued_max(queue.waiting_max);
  message.set_slots_in_use(view.slots_held);
  message.set_queued(view.waiting);
  const int64_t seconds = absl::ToInt64Seconds(queue.run_time_default);
  message.mutable_run_time_default()->set_seconds(seconds);
  message.mutable_run_time_default()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(queue.run_time_default - absl::Seconds(seconds))));
  message.set_used_slot_seconds(queue.used_slot_seconds);
  message.set_used_share(view.used_share);
  message.set_expected_share(view.expected_share);
  return message;
}

CheckedQueue CheckQueue(const v1::UpdateQueueRequest& request) { return QueueCheck(request).Run(); }

}  // namespace longspan::rpc
