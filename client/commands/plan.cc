// longspan plan
#include <fmt/format.h>

#include <map>

#include "client/command.h"
#include "client/job_source.h"
#include "client/message_json.h"
#include "proto/support/job_spec_messages.h"

namespace longspan::client {
namespace {

struct PlanOptions {
  std::string file;
  std::vector<std::string> changes;
};

int Plan(const Context& context, const PlanOptions& options) {
  v1::PlanJobRequest request;
  *request.mutable_spec() = jobfile::ToMessage(ReadJobFile(options.file, options.changes, context.environment));
  const auto response = context.Connect().Call(&v1::TrainingService::Stub::PlanJob, request);
  if (context.format != OutputFormat::kTable) {
    PrintEnvelope(context.out(), context.format, "Plan", ToJson(response));
    return kExitSucceeded;
  }
  Table table({"MEMORY OF A RANK", ">BYTES"});
  for (const auto& [kind, bytes] :
       std::map<std::string, int64_t>(response.memory_bytes().begin(), response.memory_bytes().end())) {
    table.Add({kind, BytesText(bytes)});
  }
  if (!table.empty()) table.Print(context.out(), context.environment.width);
  context.out() << fmt::format("{:.3g} FLOPs per step\n{}\n", response.step_flops(), response.summary());
  return kExitSucceeded;
}

}  // namespace

void AddPlan(CLI::App& app, Context& context) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command =
      AddCommand(app, context, "plan", "Memory and time a job would take, without a job", options, &Plan);
  command->add_option("FILE", options->file, "Job file in YAML or JSON; - for standard input")->required();
  command->add_option("--set", options->changes, "Change a key, such as training.steps=100")->allow_extra_args(false);
  AddOutputFlag(command, context);
}

}  // namespace longspan::client
