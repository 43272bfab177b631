#include "tests/fake_trainer/checkpoints.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "worker/storage/storage.h"

namespace longspan::fake_trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kState[] = "trainer_state.json";
constexpr char kManifest[] = "MANIFEST.json";

std::string TextOf(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.native());
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// "step-00000010.attempt-12" comes after "step-00000010.attempt-9".
bool IsNewer(const std::string& a, const std::string& b) {
  const auto key = [](const std::string& name) {
    const size_t dot = name.find(".attempt-");
    return std::pair(name.substr(0, dot), dot == std::string::npos ? 0 : std::atoll(name.c_str() + dot + 9));
  };
  return key(a) > key(b);
}

}  // namespace

SavedCheckpoint SaveCheckpoint(const fs::path& work, const std::string& job, int64_t attempt, const History& history) {
  const int64_t step = history.step();
  SavedCheckpoint saved;
  saved.name = fmt::format("step-{:08d}.attempt-{}", step, attempt);
  const std::string state = json{{"step", step}, {"digest", history.digest()}, {"loss", history.Loss()}}.dump();
  const json files = {{kState, {{"size", state.size()}, {"sha256", storage::Sha256Hex(state)}}}};
  const std::string manifest = json{{"job", job}, {"attempt", attempt}, {"step", step}, {"files", files}}.dump();
  const fs::path folder = work / "checkpoints", temporary = folder / ("." + saved.name + ".tmp-fake");
  fs::remove_all(temporary);
  fs::create_directories(temporary);
  std::ofstream(temporary / kState, std::ios::binary) << state;
  std::ofstream(temporary / kManifest, std::ios::binary) << manifest;
  storage::PublishFolder(temporary, folder / saved.name);
  saved.manifest_sha256 = storage::Sha256Hex(manifest);
  saved.size_bytes = static_cast<int64_t>(state.size() + manifest.size());
  return saved;
}

History LoadCheckpoint(const fs::path& work, const std::string& name, const std::string& manifest_sha256) {
  const fs::path folder = work / "checkpoints" / name;
  const std::string manifest = TextOf(folder / kManifest);
  if (!manifest_sha256.empty() && storage::Sha256Hex(manifest) != manifest_sha256) {
    throw std::runtime_error("the manifest of " + name + " is not the recorded one");
  }
  const json document = json::parse(manifest);  // outlives the loop over a part of it
  for (const auto& [file, facts] : document.at("files").items()) {
    if (storage::Sha256HexOfFile(folder / file) != facts.at("sha256").get<std::string>())
      throw std::runtime_error(name + "/" + file + " is damaged");
  }
  const json state = json::parse(TextOf(folder / kState));
  return {state.at("step").get<int64_t>(), state.at("digest").get<uint64_t>()};
}

std::vector<std::string> ListCheckpoints(const fs::path& work) {
  std::vector<std::string> names;
  std::error_code ignored;  // no folder: no checkpoints
  for (const auto& entry : fs::directory_iterator(work / "checkpoints", ignored)) {
    if (entry.path().filename().native().starts_with("step-")) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end(), IsNewer);
  return names;
}

void DeletePartial(const fs::path& work) {
  std::error_code ignored;  // no folder: nothing to delete
  std::vector<fs::path> partial;
  for (const auto& entry : fs::directory_iterator(work / "checkpoints", ignored)) {
    if (entry.path().filename().native().starts_with(".step-")) partial.push_back(entry.path());
  }
  for (const fs::path& path : partial) fs::remove_all(path);
}

void DeleteOlder(const fs::path& work, const std::string& recorded, int64_t keep_last) {
  std::vector<std::string> names = ListCheckpoints(work);
  std::erase_if(names, [&](const std::string& name) { return IsNewer(name, recorded); });
  for (size_t i = static_cast<size_t>(keep_last); i < names.size(); ++i)
    fs::remove_all(work / "checkpoints" / names[i]);
}

}  // namespace longspan::fake_trainer
