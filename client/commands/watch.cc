// longspan watch
#include "client/command.h"
#include "client/watch_job.h"

namespace longspan::client {
namespace {

struct WatchFlags {
  std::string job;
  std::string timeout;
};

int Watch(const Context& context, const WatchFlags& flags) {
  return WatchJob(context.Connect(), {flags.job, ParseTimeout(flags.timeout), context.format}, context.environment);
}

}  // namespace

void AddWatch(CLI::App& app, Context& context) {
  auto flags = std::make_shared<WatchFlags>();
  CLI::App* command = AddCommand(app, context, "watch", "Follow a job to its end", flags, &Watch);
  command->add_option("JOB", flags->job, "Id, or a name that one job has")->required();
  command->add_option("--timeout", flags->timeout, "Stop watching after this long, such as 2h30m (exit code 4)");
  AddOutputFlag(command, context);
}

}  // namespace longspan::client
