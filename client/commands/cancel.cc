// longspan cancel
#include <fmt/format.h>

#include "client/command.h"
#include "client/message_json.h"
#include "proto/support/enum_words.h"

namespace longspan::client {
namespace {

struct CancelOptions {
  std::string job;
};

int Cancel(const Context& context, const CancelOptions& options) {
  v1::CancelJobRequest request;
  request.set_job_id(options.job);
  const v1::Job job = context.Connect().Call(&v1::TrainingService::Stub::CancelJob, request).job();
  if (context.format != OutputFormat::kTable) {
    PrintEnvelope(context.out(), context.format, "Job", ToJson(job));
  } else {
    context.out() << fmt::format("{} is {}\n", job.job_id(), WordOf(job.state()));
  }
  return kExitSucceeded;
}

}  // namespace

void AddCancel(CLI::App& app, Context& context) {
  auto options = std::make_shared<CancelOptions>();
  CLI::App* command = AddCommand(app, context, "cancel", "End a job; its checkpoints stay", options, &Cancel);
  command->add_option("JOB", options->job, "Id, or a name that one job has")->required();
  AddOutputFlag(command, context);
}

}  // namespace longspan::client
