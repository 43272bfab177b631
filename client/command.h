// What the commands share. Each commands/*.cc adds its subcommand to the app; its flags live as long as the app.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>

#include "client/client.h"
#include "client/connection.h"
#include "client/exit_codes.h"
#include "client/output.h"
#include "client/settings.h"

namespace longspan::client {

// Ends the command: the message goes to standard error, the code to the shell.
class CommandError : public std::runtime_error {
 public:
  CommandError(ExitCode exit_code, const std::string& message) : std::runtime_error(message), exit_code_(exit_code) {}
  ExitCode exit_code() const { return exit_code_; }

 private:
  ExitCode exit_code_;
};

// One run of the client.
struct Context {
  const Environment& environment;
  Settings settings;  // from flags; files and variables are added by Connect
  OutputFormat format = OutputFormat::kTable;
  std::function<int()> run;  // set by the subcommand that was chosen

  std::ostream& out() const { return *environment.out; }
  std::ostream& err() const { return *environment.err; }
  // Opens the connection the settings name; throws CommandError.
  Connection Connect() const;
};

// Makes a subcommand whose `run` returns the exit code. `options` is kept alive with it.
template <class Options>
CLI::App* AddCommand(CLI::App& app, Context& context, const std::string& name, const std::string& description,
                     std::shared_ptr<Options> options, int (*run)(const Context&, const Options&)) {
  CLI::App* command = app.add_subcommand(name, description);
  command->callback(
      [&context, options, run] { context.run = [&context, options, run] { return run(context, *options); }; });
  return command;
}

// Adds --output.
void AddOutputFlag(CLI::App* command, Context& context);

void AddSubmit(CLI::App& app, Context& context);
void AddPlan(CLI::App& app, Context& context);
void AddList(CLI::App& app, Context& context);
void AddDescribe(CLI::App& app, Context& context);
void AddWatch(CLI::App& app, Context& context);
void AddLogs(CLI::App& app, Context& context);
void AddCancel(CLI::App& app, Context& context);
void AddDelete(CLI::App& app, Context& context);
void AddPauseAndResume(CLI::App& app, Context& context);
void AddCheckpoints(CLI::App& app, Context& context);
void AddExport(CLI::App& app, Context& context);
void AddEvaluate(CLI::App& app, Context& context);
void AddDownload(CLI::App& app, Context& context);
void AddUpdate(CLI::App& app, Context& context);
void AddQueues(CLI::App& app, Context& context);
void AddWorkers(CLI::App& app, Context& context);
void AddDrainAndUndrain(CLI::App& app, Context& context);
void AddDev(CLI::App& app, Context& context);
void AddVersion(CLI::App& app, Context& context);
void AddCompletion(CLI::App& app, Context& context);

}  // namespace longspan::client
