// longspan queues, and longspan queues set, which changes one of them.
#include <fmt/format.h>

#include "client/command.h"
#include "client/message_json.h"
#include "proto/jobfile/job_file.h"

namespace longspan::client {
namespace {

struct NoOptions {};
struct SetOptions {
  std::string queue;
  std::optional<double> weight;
  std::optional<int64_t> slots_max;
  std::optional<int64_t> waiting_max;
  std::string run_time_default;
};

std::string OfLimit(int64_t count, int64_t limit) {
  return limit > 0 ? fmt::format("{} of {}", count, limit) : std::to_string(count);
}

std::string Percent(double share) { return fmt::format("{:.0f}%", 100 * share); }

int PrintQueues(const Context& context, const std::vector<v1::Queue>& queues) {
  if (context.format != OutputFormat::kTable) {
    nlohmann::ordered_json items = nlohmann::ordered_json::array();
    for (const v1::Queue& queue : queues) items.push_back(ToJson(queue));
    PrintEnvelope(context.out(), context.format, "Queue", std::move(items));
    return kExitSucceeded;
  }
  if (queues.empty()) {
    context.err() << "no queues: no job has named one yet\n";
    return kExitSucceeded;
  }
  Table table({"QUEUE", ">WEIGHT", ">SLOTS", ">WAITING", ">USED", ">EXPECTED", ">RUN TIME"});
  for (const v1::Queue& queue : queues) {
    // A queue that does nothing has nothing to expect.
    const bool active = queue.expected_share() > 0;
    table.Add({queue.name(), fmt::format("{:g}", queue.weight()), OfLimit(queue.slots_in_use(), queue.slots_max()),
               OfLimit(queue.queued(), queue.queued_max()), Percent(queue.used_share()),
               active ? Percent(queue.expected_share()) : "-",
               jobfile::FormatDurationSeconds(queue.run_time_default().seconds())});
  }
  table.Print(context.out(), context.environment.out_is_terminal ? context.environment.width : 0);
  return kExitSucceeded;
}

int Queues(const Context& context, const NoOptions&) {
  const auto response = context.Connect().Call(&v1::TrainingService::Stub::ListQueues, v1::ListQueuesRequest());
  return PrintQueues(context, {response.queues().begin(), response.queues().end()});
}

// Only what was said goes into the mask: what was not stays as it is.
v1::UpdateQueueRequest RequestOf(const SetOptions& options) {
  v1::UpdateQueueRequest request;
  v1::Queue& queue = *request.mutable_queue();
  queue.set_name(options.queue);
  const auto changes = [&](const char* field) { request.mutable_update_mask()->add_paths(field); };
  if (options.weight) {
    queue.set_weight(*options.weight);
    changes("weight");
  }
  if (options.slots_max) {
    queue.set_slots_max(*options.slots_max);
    changes("slots_max");
  }
  if (options.waiting_max) {
    queue.set_queued_max(*options.waiting_max);
    changes("queued_max");
  }
  if (!options.run_time_default.empty()) {
    const auto seconds = jobfile::ParseDurationSeconds(options.run_time_default);
    if (!seconds) {
      throw CommandError(kExitUsage, fmt::format("--run-time-default {}: must be a duration such as 90s or 2h30m",
                                                 options.run_time_default));
    }
    queue.mutable_run_time_default()->set_seconds(*seconds);
    changes("run_time_default");
  }
  if (request.update_mask().paths().empty()) {
    throw CommandError(kExitUsage,
                       "nothing to change; give --weight, --slots-max, --waiting-max or --run-time-default");
  }
  return request;
}

int Set(const Context& context, const SetOptions& options) {
  const v1::UpdateQueueRequest request = RequestOf(options);
  return PrintQueues(context, {context.Connect().Call(&v1::TrainingService::Stub::UpdateQueue, request).queue()});
}

}  // namespace

void AddQueues(CLI::App& app, Context& context) {
  CLI::App* queues = AddCommand(app, context, "queues", "Queues, their limits, and what they have used of the cluster",
                                std::make_shared<NoOptions>(), &Queues);
  AddOutputFlag(queues, context);
  auto options = std::make_shared<SetOptions>();
  CLI::App* set =
      AddCommand(*queues, context, "set", "Change a queue, or make it; what is not said stays", options, &Set);
  set->add_option("NAME", options->queue, "The queue, as jobs name it")->required();
  set->add_option("--weight", options->weight, "Share relative to other queues");
  set->add_option("--slots-max", options->slots_max, "Slots that its jobs may hold at once; 0: no limit");
  set->add_option("--waiting-max", options->waiting_max, "Jobs that may wait in it; 0: no limit");
  set->add_option("--run-time-default", options->run_time_default,
                  "How long jobs without limits.max_run_time are taken to run, such as 8h");
  // The callback of the outer command runs too, and last.
  queues->callback([&context, set] {
    if (!set->parsed()) context.run = [&context] { return Queues(context, NoOptions()); };
  });
}

}  // namespace longspan::client
