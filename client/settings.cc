#include "client/settings.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <filesystem>
#include <fstream>

#include "client/command.h"

namespace longspan::client {
namespace {

void FillFrom(const std::string& value, std::string* setting) {
  if (setting->empty()) *setting = value;
}

std::string FirstLineOf(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  if (!std::getline(in, line) || line.empty())
    throw CommandError(kExitUsage, fmt::format("cannot read a token from {}", path));
  return line;
}

std::string ConfigPath(const Environment& environment) {
  if (const auto path = environment.variable("LONGSPAN_CONFIG")) return *path;
  if (const auto folder = environment.variable("XDG_CONFIG_HOME")) return *folder + "/longspan/config.yaml";
  if (const auto home = environment.variable("HOME")) return *home + "/.config/longspan/config.yaml";
  return "";
}

void ReadKey(const std::string& key, const YAML::Node& value, const std::string& path, Settings* settings) {
  if (key == "address") return FillFrom(value.as<std::string>(), &settings->address);
  if (key == "token") return FillFrom(value.as<std::string>(), &settings->token);
  if (key == "token_file")
    return settings->token.empty() ? FillFrom(FirstLineOf(value.as<std::string>()), &settings->token) : void();
  if (key == "ca") return FillFrom(value.as<std::string>(), &settings->ca_file);
  if (key == "certificate") return FillFrom(value.as<std::string>(), &settings->certificate_file);
  if (key == "key") return FillFrom(value.as<std::string>(), &settings->key_file);
  if (key == "tls") return void(settings->tls = settings->tls || value.as<bool>());
  if (key == "insecure") return void(settings->insecure = settings->insecure || value.as<bool>());
  throw CommandError(
      kExitUsage,
      fmt::format("{}: unknown key {}; known are address, token, token_file, ca, certificate, key, tls, insecure", path,
                  key));
}

void ReadConfig(const std::string& path, Settings* settings) {
  if (path.empty() || !std::filesystem::exists(path)) return;
  try {
    const YAML::Node config = YAML::LoadFile(path);
    if (config.IsNull()) return;
    if (!config.IsMap()) throw CommandError(kExitUsage, fmt::format("{} is no map of keys", path));
    for (const auto& entry : config) ReadKey(entry.first.as<std::string>(), entry.second, path, settings);
  } catch (const YAML::Exception& error) {
    throw CommandError(kExitUsage, fmt::format("{} line {}: {}", path, error.mark.line + 1, error.msg));
  }
}

}  // namespace

Settings CompleteSettings(Settings settings, const Environment& environment) {
  const auto from_variable = [&environment](const char* name, std::string* setting) {
    if (const auto value = environment.variable(name)) FillFrom(*value, setting);
  };
  from_variable("LONGSPAN_ADDRESS", &settings.address);
  from_variable("LONGSPAN_TOKEN", &settings.token);
  from_variable("LONGSPAN_CA", &settings.ca_file);
  ReadConfig(ConfigPath(environment), &settings);
  FillFrom(kDefaultAddress, &settings.address);
  return settings;
}

ChannelOptions ToChannelOptions(const Settings& settings) {
  ChannelOptions options;
  options.address = settings.address;
  options.tls = settings.tls;
  options.ca_file = settings.ca_file;
  options.certificate_file = settings.certificate_file;
  options.key_file = settings.key_file;
  options.insecure = settings.insecure;
  return options;
}

}  // namespace longspan::client
