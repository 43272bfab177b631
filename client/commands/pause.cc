// longspan pause, longspan resume: the two sides of one switch.
#include <fmt/format.h>

#include "client/command.h"
#include "client/message_json.h"
#include "proto/support/enum_words.h"

namespace longspan::client {
namespace {

struct PauseOptions {
  std::string job;
};

int PrintJob(const Context& context, const v1::Job& job) {
  if (context.format != OutputFormat::kTable) {
    PrintEnvelope(context.out(), context.format, "Job", ToJson(job));
  } else {
    context.out() << fmt::format("{} is {}\n", job.job_id(), WordOf(job.state()));
  }
  return kExitSucceeded;
}

int Pause(const Context& context, const PauseOptions& options) {
  v1::PauseJobRequest request;
  request.set_job_id(options.job);
  return PrintJob(context, context.Connect().Call(&v1::TrainingService::Stub::PauseJob, request).job());
}

int Resume(const Context& context, const PauseOptions& options) {
  v1::ResumeJobRequest request;
  request.set_job_id(options.job);
  return PrintJob(context, context.Connect().Call(&v1::TrainingService::Stub::ResumeJob, request).job());
}

}  // namespace

void AddPauseAndResume(CLI::App& app, Context& context) {
  auto options = std::make_shared<PauseOptions>();
  CLI::App* pause = AddCommand(app, context, "pause", "Stop a job after a checkpoint; it holds no slots until resumed",
                               options, &Pause);
  pause->add_option("JOB", options->job, "Id, or a name that one job has")->required();
  AddOutputFlag(pause, context);
  CLI::App* resume = AddCommand(app, context, "resume", "Put a paused job back into its queue", options, &Resume);
  resume->add_option("JOB", options->job, "Id, or a name that one job has")->required();
  AddOutputFlag(resume, context);
}

}  // namespace longspan::client
