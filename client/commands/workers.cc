// longspan workers, and longspan drain and undrain, which change one of them.
#include <fmt/format.h>

#include <algorithm>

#include "client/command.h"
#include "client/job_report.h"
#include "client/message_json.h"

namespace longspan::client {
namespace {

struct NoOptions {};
struct WorkerOptions {
  std::string worker;
  bool move = false;
};

int PrintWorkers(const Context& context, const std::vector<v1::Worker>& workers) {
  if (context.format != OutputFormat::kTable) {
    nlohmann::ordered_json items = nlohmann::ordered_json::array();
    for (const v1::Worker& worker : workers) items.push_back(ToJson(worker));
    PrintEnvelope(context.out(), context.format, "Worker", std::move(items));
    return kExitSucceeded;
  }
  if (workers.empty()) {
    context.err() << "no workers\n";
    return kExitSucceeded;
  }
  Table table({"WORKER", "STATE", ">SLOTS", ">FREE", "DEVICE", "ADDRESS", ">SEEN", "VERSION"});
  for (const v1::Worker& worker : workers) {
    const auto free = std::count_if(worker.slots().begin(), worker.slots().end(),
                                    [](const v1::Slot& slot) { return slot.job_id().empty(); });
    const std::string state = worker.up() ? (worker.draining() ? "draining" : "up") : "down";
    table.Add({worker.worker_id(), state, std::to_string(worker.slots_size()), std::to_string(free),
               worker.slots().empty() ? "" : worker.slots(0).device(),
               fmt::format("{}:{}", worker.advertise_address(), worker.http_port()),
               AgeText(worker.last_seen_time(), context.environment.now()), worker.version()});
  }
  table.Print(context.out(), context.environment.out_is_terminal ? context.environment.width : 0);
  return kExitSucceeded;
}

int Workers(const Context& context, const NoOptions&) {
  const auto response = context.Connect().Call(&v1::TrainingService::Stub::ListWorkers, v1::ListWorkersRequest());
  return PrintWorkers(context, {response.workers().begin(), response.workers().end()});
}

int Drain(const Context& context, const WorkerOptions& options) {
  v1::DrainWorkerRequest request;
  request.set_worker_id(options.worker);
  request.set_move(options.move);
  return PrintWorkers(context, {context.Connect().Call(&v1::TrainingService::Stub::DrainWorker, request).worker()});
}

int Undrain(const Context& context, const WorkerOptions& options) {
  v1::UndrainWorkerRequest request;
  request.set_worker_id(options.worker);
  return PrintWorkers(context, {context.Connect().Call(&v1::TrainingService::Stub::UndrainWorker, request).worker()});
}

}  // namespace

void AddWorkers(CLI::App& app, Context& context) {
  AddOutputFlag(AddCommand(app, context, "workers", "Machines of the cluster and their slots",
                           std::make_shared<NoOptions>(), &Workers),
                context);
}

void AddDrainAndUndrain(CLI::App& app, Context& context) {
  auto options = std::make_shared<WorkerOptions>();
  CLI::App* drain = AddCommand(app, context, "drain", "Place no new ranks on a worker", options, &Drain);
  drain->add_option("WORKER", options->worker, "Its name")->required();
  drain->add_flag("--move", options->move, "Its ranks save a checkpoint and go on elsewhere; else they end there");
  AddOutputFlag(drain, context);
  CLI::App* undrain = AddCommand(app, context, "undrain", "Take a drain back", options, &Undrain);
  undrain->add_option("WORKER", options->worker, "Its name")->required();
  AddOutputFlag(undrain, context);
}

}  // namespace longspan::client
