// longspan submit
#include <fmt/format.h>

#include <random>

#include "client/command.h"
#include "client/job_report.h"
#include "client/job_source.h"
#include "client/message_json.h"
#include "client/submit_spec.h"
#include "client/watch_job.h"
#include "proto/jobfile/job_file.h"
#include "proto/support/job_spec_messages.h"

namespace longspan::client {
namespace {

struct SubmitOptions : SubmitSpecOptions {
  std::string file;
  std::vector<std::string> changes;
};

// A name for this submission, so that the retry of a lost call cannot make a second job.
std::string NewRequestId() {
  std::random_device random;
  return fmt::format("cli-{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

int Submit(const Context& context, const SubmitOptions& options) {
  SubmitSpecOptions submit = options;
  submit.what = options.file;
  return SubmitSpec(context, ReadJobFile(options.file, options.changes, context.environment), submit);
}

}  // namespace

int SubmitSpec(const Context& context, const jobfile::JobSpec& spec, const SubmitSpecOptions& options) {
  const auto timeout = ParseTimeout(options.timeout);
  v1::SubmitJobRequest request;
  *request.mutable_spec() = jobfile::ToMessage(spec);
  request.set_validate_only(options.validate_only);
  request.set_request_id(options.request_id.empty() ? NewRequestId() : options.request_id);
  const Connection connection = context.Connect();
  const auto response = connection.Call(&v1::TrainingService::Stub::SubmitJob, request);
  const v1::Job& job = response.job();
  if (options.validate_only) {
    if (context.format != OutputFormat::kTable) {
      PrintEnvelope(context.out(), context.format, "Job", ToJson(job));
    } else {
      context.out() << options.what << " is valid\n";
    }
    return kExitSucceeded;
  }
  const bool for_people = context.format == OutputFormat::kTable;
  if (for_people)
    context.out() << fmt::format("{} {}\n", job.job_id(),
                                 response.already_submitted() ? "had been submitted before" : "submitted")
                  << std::flush;
  if (options.wait) return WatchJob(connection, {job.job_id(), timeout, context.format}, context.environment);
  if (!for_people) PrintEnvelope(context.out(), context.format, "Job", ToJson(job));
  if (for_people) context.out() << fmt::format("follow it with: longspan watch {}\n", job.job_id());
  return kExitSucceeded;
}

void AddSubmit(CLI::App& app, Context& context) {
  auto options = std::make_shared<SubmitOptions>();
  CLI::App* command = AddCommand(app, context, "submit", "Submit a job file", options, &Submit);
  command->add_option("FILE", options->file, "Job file in YAML or JSON; - for standard input")->required();
  command->add_option("--set", options->changes, "Change a key, such as training.steps=100 (again for more)")
      ->allow_extra_args(false);
  command->add_flag("--wait", options->wait, "Follow the job and exit with what became of it");
  command->add_option("--timeout", options->timeout,
                      "With --wait: stop waiting after this long, such as 2h30m (exit code 4)");
  command->add_option("--request-id", options->request_id, "Name of this submission; the same name gives the same job");
  command->add_flag("--validate-only", options->validate_only, "Check the job file; submit nothing");
  AddOutputFlag(command, context);
}

}  // namespace longspan::client
