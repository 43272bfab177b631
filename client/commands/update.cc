// longspan update
#include <fmt/format.h>

#include "client/command.h"
#include "client/message_json.h"
#include "proto/support/enum_words.h"

namespace longspan::client {
namespace {

struct UpdateOptions {
  std::string job;
  std::optional<int64_t> priority;
  std::vector<std::string> labels;
};

std::string LabelsText(const v1::JobSpec& spec) {
  std::string text;
  for (const auto& [key, value] : std::map<std::string, std::string>(spec.labels().begin(), spec.labels().end())) {
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", key, value);
  }
  return text.empty() ? "no labels" : "labels " + text;
}

int Update(const Context& context, const UpdateOptions& options) {
  v1::UpdateJobRequest request;
  request.set_job_id(options.job);
  if (options.priority) request.set_priority(*options.priority);
  for (const std::string& label : options.labels) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos) {
      throw CommandError(kExitUsage, fmt::format("--label {}: must be key=value, or key= to remove it", label));
    }
    (*request.mutable_labels())[label.substr(0, equals)] = label.substr(equals + 1);
  }
  if (!options.priority && options.labels.empty()) {
    throw CommandError(kExitUsage, "nothing to change; give --priority or --label");
  }
  const v1::Job job = context.Connect().Call(&v1::TrainingService::Stub::UpdateJob, request).job();
  if (context.format != OutputFormat::kTable) {
    PrintEnvelope(context.out(), context.format, "Job", ToJson(job));
  } else {
    context.out() << WithoutControls(fmt::format("{} is {}, priority {}, {}", job.job_id(), WordOf(job.state()),
                                                 job.spec().priority(), LabelsText(job.spec())))
                  << "\n";
  }
  return kExitSucceeded;
}

}  // namespace

void AddUpdate(CLI::App& app, Context& context) {
  auto options = std::make_shared<UpdateOptions>();
  CLI::App* command =
      AddCommand(app, context, "update", "Change the priority and labels of a job that waits", options, &Update);
  command->add_option("JOB", options->job, "Id, or a name that one job has")->required();
  command->add_option("--priority", options->priority, "0 to 100, higher first");
  command->add_option("--label", options->labels, "Set a label, key=value; key= removes it (again for more)")
      ->allow_extra_args(false);
  AddOutputFlag(command, context);
}

}  // namespace longspan::client
