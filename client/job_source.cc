#include "client/job_source.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <istream>
#include <sstream>

#include "client/command.h"
#include "client/yaml_document.h"
#include "proto/jobfile/job_file.h"
#include "proto/jobfile/text_lines.h"

namespace longspan::client {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kFileBytesMax = 1024 * 1024;

std::string ReadText(const std::string& path, const Environment& environment) {
  std::ifstream file;
  if (path != "-") {
    if (fs::is_directory(path)) throw CommandError(kExitUsage, fmt::format("{} is a folder; name a job file", path));
    file.open(path, std::ios::binary);
    if (!file)
      throw CommandError(kExitUsage, fmt::format("cannot read {}: {}", path, std::generic_category().message(errno)));
  }
  std::istream& in = path == "-" ? *environment.in : file;
  std::string text(kFileBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > kFileBytesMax)
    throw CommandError(kExitUsage, fmt::format("{} has more than {} bytes; is it a job file?", path, kFileBytesMax));
  return text;
}

bool IsJson(const std::string& path, const std::string& text) {
  if (path.ends_with(".json")) return true;
  const size_t first = text.find_first_not_of(" \t\r\n");
  return !path.ends_with(".yaml") && !path.ends_with(".yml") && first != std::string::npos && text[first] == '{';
}

YamlDocument ParseJson(const std::string& text) {
  YamlDocument result;
  result.document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (result.document.is_discarded()) {
    result.mistakes = jobfile::ParseText(text).mistakes;
    return result;
  }
  jobfile::TextLines lines = jobfile::ScanLines(text);
  for (const auto& [path, line] : lines.repeated_keys) {
    result.mistakes.push_back({path, line, fmt::format("is written twice, first in line {}", lines.line_of[path])});
  }
  result.line_of = std::move(lines.line_of);
  return result;
}

std::string Absolute(const std::string& path, const fs::path& folder) {
  return path.empty()
             ? path
             : (folder.empty() ? fs::current_path() / path : fs::absolute(folder) / path).lexically_normal().native();
}

// Paths of a document, when they are texts: anything else is for the parser to refuse.
void MakePathsAbsolute(json& document, const fs::path& folder) {
  const auto make = [&folder](json& value) {
    if (value.is_string()) value = Absolute(value.get<std::string>(), folder);
  };
  const auto section = [&document](const char* name) -> json* {
    return document.is_object() && document.contains(name) && document[name].is_object() ? &document[name] : nullptr;
  };
  if (json* model = section("model"); model != nullptr && model->contains("path")) make((*model)["path"]);
  if (json* method = section("method"); method != nullptr && method->contains("adapter")) make((*method)["adapter"]);
  for (const char* task : {"longbench", "conversations"}) {
    json* evaluation = section("evaluation");
    if (evaluation == nullptr || !evaluation->contains(task) || !(*evaluation)[task].is_object()) continue;
    if (json& own = (*evaluation)[task]; own.contains("path")) make(own["path"]);
  }
  if (json* data = section("data"); data != nullptr && data->contains("sources") && (*data)["sources"].is_array()) {
    for (json& source : (*data)["sources"]) make(source);
  }
}

// Sets "training.steps" of a document, making sections on the way.
void SetKey(const std::string& change, json& document) {
  const size_t equals = change.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw CommandError(kExitUsage, fmt::format("--set {}: must be key=value, such as training.steps=100", change));
  }
  YamlDocument value = ParseYaml(change.substr(equals + 1));
  if (!value.mistakes.empty())
    throw CommandError(kExitUsage, fmt::format("--set {}: {}", change, value.mistakes.front().message));
  json* place = &document;
  const std::string key = change.substr(0, equals);
  size_t begin = 0;
  // A label's own name may have dots in it.
  for (size_t dot; (dot = key.find('.', begin)) != std::string::npos && key.substr(0, begin) != "labels.";
       begin = dot + 1) {
    json& next = (*place)[key.substr(begin, dot - begin)];
    if (!next.is_object()) next = json::object();
    place = &next;
  }
  (*place)[key.substr(begin)] = std::move(value.document);
}

// Lays the changes over the document and reads it; throws CommandError with every mistake.
jobfile::JobSpec SpecOf(const std::string& name, YamlDocument source, const std::vector<std::string>& changes) {
  std::vector<jobfile::Mistake> mistakes = std::move(source.mistakes);
  jobfile::Parsed parsed;
  if (mistakes.empty()) {
    if (!changes.empty() && source.document.is_null()) source.document = json::object();
    if (source.document.is_object()) {
      for (const std::string& change : changes) SetKey(change, source.document);
    }
    MakePathsAbsolute(source.document, fs::current_path());  // those that --set brought
    const jobfile::LineOf line_of = [&source](std::string_view key) {
      const auto found = source.line_of.find(key);
      return found == source.line_of.end() ? 0 : found->second;
    };
    parsed = jobfile::ParseDocument(source.document, line_of);
    mistakes = std::move(parsed.mistakes);
  }
  if (mistakes.empty() && parsed.spec) return *std::move(parsed.spec);
  std::string message = fmt::format("{} has {} mistake{}:", name, mistakes.size(), mistakes.size() == 1 ? "" : "s");
  for (const jobfile::Mistake& mistake : mistakes) message += "\n  " + jobfile::ToString(mistake);
  throw CommandError(kExitUsage, message);
}

}  // namespace

jobfile::JobSpec ReadJobFile(const std::string& path, const std::vector<std::string>& changes,
                             const Environment& environment) {
  const std::string text = ReadText(path, environment);
  YamlDocument source = IsJson(path, text) ? ParseJson(text) : ParseYaml(text);
  MakePathsAbsolute(source.document, path == "-" ? fs::current_path() : fs::path(path).parent_path());
  return SpecOf(path, std::move(source), changes);
}

jobfile::JobSpec SpecOfDocument(const std::string& name, json document, const std::vector<std::string>& changes) {
  YamlDocument source;
  source.document = std::move(document);
  return SpecOf(name, std::move(source), changes);
}

}  // namespace longspan::client
