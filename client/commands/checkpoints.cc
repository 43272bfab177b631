// longspan checkpoints
#include "client/command.h"
#include "client/job_report.h"
#include "client/message_json.h"

namespace longspan::client {
namespace {

struct CheckpointsOptions {
  std::string job;
};

int Checkpoints(const Context& context, const CheckpointsOptions& options) {
  v1::ListCheckpointsRequest request;
  request.set_job_id(options.job);
  const auto response = context.Connect().Call(&v1::TrainingService::Stub::ListCheckpoints, request);
  if (context.format != OutputFormat::kTable) {
    nlohmann::ordered_json items = nlohmann::ordered_json::array();
    for (const v1::CheckpointRecord& checkpoint : response.checkpoints()) items.push_back(ToJson(checkpoint));
    PrintEnvelope(context.out(), context.format, "Checkpoint", std::move(items));
    return kExitSucceeded;
  }
  if (response.checkpoints().empty()) {
    context.err() << "no checkpoints yet\n";
    return kExitSucceeded;
  }
  Table table({"CHECKPOINT", ">STEP", ">ATTEMPT", ">SIZE", ">SAVED", "MANIFEST"});
  for (const v1::CheckpointRecord& checkpoint : response.checkpoints()) {
    table.Add({checkpoint.name(), CountText(checkpoint.step()), std::to_string(checkpoint.attempt()),
               BytesText(checkpoint.size_bytes()), AgeText(checkpoint.time(), context.environment.now()),
               checkpoint.manifest_sha256().substr(0, 12)});
  }
  table.Print(context.out(), context.environment.out_is_terminal ? context.environment.width : 0);
  return kExitSucceeded;
}

}  // namespace

void AddCheckpoints(CLI::App& app, Context& context) {
  auto options = std::make_shared<CheckpointsOptions>();
  CLI::App* command =
      AddCommand(app, context, "checkpoints", "Recorded checkpoints of a job, newest first", options, &Checkpoints);
  command->add_option("JOB", options->job, "Id, or a name that one job has")->required();
  AddOutputFlag(command, context);
}

}  // namespace longspan::client
