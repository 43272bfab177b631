#include "client/client.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

#include <sys/ioctl.h>
#include <unistd.h>

#include "client/command.h"

namespace longspan::client {
namespace {

constexpr char kFooter[] = R"(
Exit codes: 0 succeeded, 1 failed, 2 wrong use or a wrong job file, 3 no connection or not allowed, 4 out of time,
5 cancelled, 6 not found or refused.)";

void AddConnectionFlags(CLI::App& app, Context& context, std::string* token_file) {
  Settings& settings = context.settings;
  app.add_option("--address", settings.address,
                 fmt::format("Server as host:port (LONGSPAN_ADDRESS; {})", kDefaultAddress));
  app.add_option("--token-file", *token_file, "File with the bearer token (LONGSPAN_TOKEN holds the token itself)");
  app.add_option("--ca", settings.ca_file, "PEM file of the authority behind the server's certificate (LONGSPAN_CA)");
  app.add_option("--certificate", settings.certificate_file, "PEM file of this client's own certificate");
  app.add_option("--key", settings.key_file, "PEM file of its key");
  app.add_flag("--tls", settings.tls, "TLS with the system's authorities");
  app.add_flag("--insecure", settings.insecure, "Plain text to another machine");
}

void AddCommands(CLI::App& app, Context& context) {
  AddSubmit(app, context);
  AddPlan(app, context);
  AddList(app, context);
  AddDescribe(app, context);
  AddWatch(app, context);
  AddLogs(app, context);
  AddCancel(app, context);
  AddDelete(app, context);
  AddPauseAndResume(app, context);
  AddUpdate(app, context);
  AddCheckpoints(app, context);
  AddExport(app, context);
  AddEvaluate(app, context);
  AddDownload(app, context);
  AddQueues(app, context);
  AddWorkers(app, context);
  AddDrainAndUndrain(app, context);
  AddDev(app, context);
  AddVersion(app, context);
  AddCompletion(app, context);
}

std::string TokenFrom(const std::string& file) {
  std::ifstream in(file);
  std::string token;
  if (!std::getline(in, token) || token.empty())
    throw CommandError(kExitUsage, fmt::format("cannot read a token from {}", file));
  return token;
}

int Run(const std::vector<std::string>& arguments, const Environment& environment) {
  CLI::App app("Longspan extends the context window of language models, as a service.", "longspan");
  app.require_subcommand(1);
  app.fallthrough();  // --address and its like may stand behind the command too
  app.footer(kFooter);
  app.get_formatter()->column_width(34);
  Context context{environment, {}, OutputFormat::kTable, nullptr};
  std::string token_file;
  AddConnectionFlags(app, context, &token_file);
  AddCommands(app, context);
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as CLI11 wants them
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, *environment.out, *environment.err) == 0 ? kExitSucceeded : kExitUsage;
  }
  if (!token_file.empty()) context.settings.token = TokenFrom(token_file);
  return context.run();
}

}  // namespace

Connection Context::Connect() const { return Connection(CompleteSettings(settings, environment), environment); }

void AddOutputFlag(CLI::App* command, Context& context) {
  const std::map<std::string, OutputFormat> formats = {
      {"table", OutputFormat::kTable}, {"json", OutputFormat::kJson}, {"yaml", OutputFormat::kYaml}};
  command->add_option("-o,--output", context.format, "table, json or yaml")
      ->transform(CLI::CheckedTransformer(formats).description(""));
}

Environment ProcessEnvironment() {
  Environment environment;
  environment.out = &std::cout;
  environment.err = &std::cerr;
  environment.in = &std::cin;
  environment.out_is_terminal = ::isatty(STDOUT_FILENO) != 0;
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) environment.width = size.ws_col;
  environment.variable = [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value == nullptr || *value == '\0' ? std::nullopt : std::optional<std::string>(value);
  };
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    if (const auto locale = environment.variable(name)) {
      environment.utf8 = locale->find("UTF-8") != std::string::npos || locale->find("utf8") != std::string::npos;
      break;
    }
  }
  environment.now = [] { return std::chrono::system_clock::now(); };
  environment.sleep = [](std::chrono::milliseconds pause) { std::this_thread::sleep_for(pause); };
  return environment;
}

int RunClient(const std::vector<std::string>& arguments, const Environment& environment) {
  try {
    return Run(arguments, environment);
  } catch (const CommandError& error) {
    *environment.err << "longspan: " << error.what() << "\n";
    return error.exit_code();
  } catch (const std::exception& error) {
    *environment.err << "longspan: " << error.what() << "\n";
    return kExitFailed;
  }
}

}  // namespace longspan::client
