// longspan version
#include "client/version.h"

#include <fmt/format.h>

#include "client/command.h"

namespace longspan::client {
namespace {

struct VersionOptions {
  bool server = false;
};

int Version(const Context& context, const VersionOptions& options) {
  nlohmann::ordered_json item = {{"client", kVersion}};
  if (options.server) {
    item["server"] =
        context.Connect().Call(&v1::TrainingService::Stub::GetServerInfo, v1::GetServerInfoRequest()).version();
  }
  if (context.format != OutputFormat::kTable) {
    PrintEnvelope(context.out(), context.format, "Version", item);
    return kExitSucceeded;
  }
  context.out() << "longspan " << kVersion << "\n";
  if (options.server) context.out() << "server " << item["server"].get<std::string>() << "\n";
  return kExitSucceeded;
}

}  // namespace

void AddVersion(CLI::App& app, Context& context) {
  auto options = std::make_shared<VersionOptions>();
  CLI::App* command = AddCommand(app, context, "version", "Version of this program", options, &Version);
  command->add_flag("--server", options->server, "Also the server's");
  AddOutputFlag(command, context);
}

}  // namespace longspan::client
