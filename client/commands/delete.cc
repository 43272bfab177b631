// longspan delete
#include <fmt/format.h>

#include "client/command.h"

namespace longspan::client {
namespace {

struct DeleteOptions {
  std::string job;
};

int Delete(const Context& context, const DeleteOptions& options) {
  v1::DeleteJobRequest request;
  request.set_job_id(options.job);
  context.Connect().Call(&v1::TrainingService::Stub::DeleteJob, request);
  context.out() << fmt::format("{} is deleted; its files stay\n", options.job);
  return kExitSucceeded;
}

}  // namespace

void AddDelete(CLI::App& app, Context& context) {
  auto options = std::make_shared<DeleteOptions>();
  CLI::App* command =
      AddCommand(app, context, "delete", "Forget a job that has ended; its files stay", options, &Delete);
  command->add_option("JOB", options->job, "Id, or a name that one job has")->required();
}

}  // namespace longspan::client
