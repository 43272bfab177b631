#include "tests/fake_trainer/checkpoints.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
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

}  // namespace

SavedCheckpoint SaveCheckpoint(const fs::path& work, const std::string& job, int64_t attempt, int64_t step,
                               double loss) {
  SavedCheckpoint saved;
  saved.name = fmt::format("step-{:08d}.attempt-{}", step, attempt);
  const std::string state = json{{"step", step}, {"loss", loss}}.dump();
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

int64_t LoadCheckpoint(const fs::path& work, const std::string& name, const std::string& manifest_sha256) {
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
  return json::parse(TextOf(folder / kState)).at("step").get<int64_t>();
}

void DeleteOlder(const fs::path& work, const std::string& recorded, int64_t keep_last) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(work / "checkpoints")) {
    const std::string name = entry.path().filename();
    if (name.starts_with("step-") && name <= recorded) names.push_back(name);
  }
  std::sort(names.rbegin(), names.rend());
  for (size_t i = static_cast<size_t>(keep_last); i < names.size(); ++i)
    fs::remove_all(work / "checkpoints" / names[i]);
}

}  // namespace longspan::fake_trainer
