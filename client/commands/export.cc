// longspan export
#include <fmt/format.h>

#include "client/command.h"
#include "client/message_json.h"

namespace longspan::client {
namespace {

struct ExportOptions {
  std::string job;
  std::string checkpoint;
};

int Export(const Context& context, const ExportOptions& options) {
  v1::ExportJobRequest request;
  request.set_job_id(options.job);
  request.set_checkpoint(options.checkpoint);
  const v1::Job job = context.Connect().Call(&v1::TrainingService::Stub::ExportJob, request).job();
  if (context.format != OutputFormat::kTable) {
    PrintEnvelope(context.out(), context.format, "Job", ToJson(job));
  } else {
    context.out() << fmt::format("{} exports it; follow it with: longspan watch {}\n", job.job_id(), job.job_id());
  }
  return kExitSucceeded;
}

}  // namespace

void AddExport(CLI::App& app, Context& context) {
  auto options = std::make_shared<ExportOptions>();
  CLI::App* command =
      AddCommand(app, context, "export", "Adapter and merged model from a checkpoint", options, &Export);
  command->add_option("JOB", options->job, "Id, or a name that one job has")->required();
  command->add_option("--checkpoint", options->checkpoint, "Name of a checkpoint; the newest when absent");
  AddOutputFlag(command, context);
}

}  // namespace longspan::client
