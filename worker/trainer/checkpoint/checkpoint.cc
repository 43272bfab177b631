#include "worker/trainer/checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include "worker/storage/storage.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;

const char* const kManifest = "MANIFEST.json";
const char* const kState = "trainer_state.json";
const char* const kOptimizer = "optimizer.safetensors";
const std::string kTemporaryPrefix = ".writing-";

void WritePlainFile(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.flush();
  if (!file) throw InfrastructureError("cannot write " + path.string() + ": the disk is full or failing");
}

std::string ReadPlainFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw CorruptCheckpoint(path.string() + " cannot be read");
  return text.str();
}

std::vector<NamedTensor> OptimizerTensors(const std::vector<AdamW::State>& states) {
  std::vector<NamedTensor> tensors;
  for (const AdamW::State& state : states) {
    tensors.emplace_back("master." + state.name, state.master);
    tensors.emplace_back("first_moment." + state.name, state.first_moment);
    tensors.emplace_back("second_moment." + state.name, state.second_moment);
  }
  return tensors;
}

nlohmann::json ManifestOf(const Snapshot& snapshot, const fs::path& folder) {
  nlohmann::json files = nlohmann::json::object();
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = {{"size", entry.file_size()},
                                               {"sha256", storage::Sha256HexOfFile(entry.path())}};
  }
  return {{"job", snapshot.job}, {"attempt", snapshot.attempt}, {"step", snapshot.state.step}, {"files", files}};
}

WrittenCheckpoint WriteInto(const fs::path& temporary, const fs::path& target, const Snapshot& snapshot) {
  fs::create_directories(temporary);
  WriteSafetensors((temporary / snapshot.weights_file).string(), snapshot.weights);
  if (!snapshot.adapter_config.is_null()) {
    WritePlainFile(temporary / "adapter_config.json", snapshot.adapter_config.dump(2) + "\n");
  }
  // Names of the trained tensors in the order of the optimizer: the tensors of a safetensors file have none of their
  // own.
  nlohmann::json state = ToDocument(snapshot.state);
  state["trained"] = nlohmann::json::array();
  for (const AdamW::State& tensor : snapshot.optimizer) state["trained"].push_back(tensor.name);
  WriteSafetensors((temporary / kOptimizer).string(), OptimizerTensors(snapshot.optimizer));
  WritePlainFile(temporary / kState, state.dump(2) + "\n");

  const nlohmann::json manifest = ManifestOf(snapshot, temporary);
  const std::string manifest_text = manifest.dump(2) + "\n";
  WritePlainFile(temporary / kManifest, manifest_text);
  WrittenCheckpoint written;
  written.size_bytes = static_cast<int64_t>(manifest_text.size());
  for (const auto& file : manifest["files"]) written.size_bytes += file["size"].get<int64_t>();
  written.manifest_sha256 = storage::Sha256Hex(manifest_text);
  if (!storage::PublishFolder(temporary, target)) {
    throw InfrastructureError("cannot write checkpoint " + target.string() + ": a folder of that name exists already");
  }
  return written;
}

LoadedCheckpoint ReadVerified(const fs::path& folder, const std::string& manifest_sha256) {
  const std::string manifest_text = ReadPlainFile(folder / kManifest);
  LoadedCheckpoint loaded;
  loaded.name = folder.filename().string();
  loaded.manifest_sha256 = storage::Sha256Hex(manifest_text);
  if (!manifest_sha256.empty() && loaded.manifest_sha256 != manifest_sha256) {
    throw CorruptCheckpoint((folder / kManifest).string() + " has hash " + loaded.manifest_sha256 + ", expected " +
                            manifest_sha256);
  }
  const nlohmann::json manifest = nlohmann::json::parse(manifest_text);
  for (const auto& [name, file] : manifest.at("files").items()) {
    const fs::path path = folder / name;
    if (!fs::is_regular_file(path)) throw CorruptCheckpoint(path.string() + " is missing");
    if (fs::file_size(path) != file.at("size").get<uint64_t>()) {
      throw CorruptCheckpoint(fmt::format("{} has {} bytes, its manifest says {}", path.string(), fs::file_size(path),
                                          file.at("size").get<uint64_t>()));
    }
    if (storage::Sha256HexOfFile(path) != file.at("sha256").get<std::string>()) {
      throw CorruptCheckpoint(path.string() + " does not have the hash that its manifest says");
    }
  }
  const nlohmann::json state = nlohmann::json::parse(ReadPlainFile(folder / kState));
  loaded.state = TrainerStateOf(state);
  const SafetensorsFile optimizer = SafetensorsFile::Open((folder / kOptimizer).string());
  for (const auto& trained : state.at("trained")) {
    const auto name = trained.get<std::string>();
    loaded.optimizer.push_back({name, optimizer.View("master." + name), optimizer.View("first_moment." + name),
                                optimizer.View("second_moment." + name)});
  }
  return loaded;
}

}  // namespace

std::string ToString(const CheckpointName& name) {
  return fmt::format("step-{:08}.attempt-{}", name.step, name.attempt);
}

std::optional<CheckpointName> ParseCheckpointName(const std::string& text) {
  const std::string step_word = "step-", attempt_word = ".attempt-";
  const size_t middle = text.find(attempt_word);
  if (text.rfind(step_word, 0) != 0 || middle == std::string::npos) return std::nullopt;
  CheckpointName name;
  const char* begin = text.data();
  const char* step_end = begin + middle;
  const char* attempt_begin = step_end + attempt_word.size();
  const char* end = begin + text.size();
  const auto step = std::from_chars(begin + step_word.size(), step_end, name.step);
  const auto attempt = std::from_chars(attempt_begin, end, name.attempt);
  if (step.ec != std::errc() || step.ptr != step_end || attempt.ec != std::errc() || attempt.ptr != end)
    return std::nullopt;
  if (ToString(name) != text) return std::nullopt;
  return name;
}

nlohmann::json ToDocument(const TrainerState& state) {
  // JSON has no NaN: a loss that is none is left out.
  nlohmann::json document = {{"step", state.step},
                             {"updates", state.updates},
                             {"nonfinite_steps", state.nonfinite_steps},
                             {"nonfinite_steps_in_a_row", state.nonfinite_steps_in_a_row},
                             {"tokens_total", state.tokens_total},
                             {"model_flops_total", state.model_flops_total},
                             {"seconds_total", state.seconds_total},
                             {"memory_peak_bytes", state.memory_peak_bytes},
                             {"loss", state.loss},
                             {"ranks", state.ranks},
                             {"threads", state.threads},
                             {"version", state.version},
                             {"dataset", state.dataset},
                             {"spec", state.spec}};
  return document;
}

TrainerState TrainerStateOf(const nlohmann::json& document) {
  TrainerState state;
  document.at("step").get_to(state.step);
  document.at("updates").get_to(state.updates);
  document.at("nonfinite_steps").get_to(state.nonfinite_steps);
  document.at("nonfinite_steps_in_a_row").get_to(state.nonfinite_steps_in_a_row);
  document.at("tokens_total").get_to(state.tokens_total);
  document.at("model_flops_total").get_to(state.model_flops_total);
  document.at("seconds_total").get_to(state.seconds_total);
  document.at("memory_peak_bytes").get_to(state.memory_peak_bytes);
  document.at("loss").get_to(state.loss);
  document.at("ranks").get_to(state.ranks);
  document.at("threads").get_to(state.threads);
  document.at("version").get_to(state.version);
  document.at("dataset").get_to(state.dataset);
  state.spec = document.at("spec");
  return state;
}

WrittenCheckpoint WriteCheckpoint(const fs::path& checkpoints, const Snapshot& snapshot) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string name = ToString(CheckpointName{snapshot.state.step, snapshot.attempt});
  const fs::path temporary = checkpoints / (kTemporaryPrefix + name);
  std::string cause;
  try {
    fs::create_directories(checkpoints);
    fs::remove_all(temporary);
    WrittenCheckpoint written = WriteInto(temporary, checkpoints / name, snapshot);
    written.name = name;
    written.step = snapshot.state.step;
    written.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return written;
  } catch (const std::exception& error) {
    cause = error.what();
  }
  std::error_code ignored;
  fs::remove_all(temporary, ignored);
  throw InfrastructureError("cannot write checkpoint " + name + ": " + cause + "; older checkpoints are untouched");
}

std::vector<CheckpointName> ListCheckpoints(const fs::path& checkpoints) {
  std::vector<CheckpointName> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(checkpoints, error)) {
    const auto name = ParseCheckpointName(entry.path().filename().string());
    if (name && fs::exists(entry.path() / kManifest)) names.push_back(*name);
  }
  std::sort(names.rbegin(), names.rend());
  return names;
}

LoadedCheckpoint LoadCheckpoint(const fs::path& checkpoints, const std::string& name,
                                const std::string& manifest_sha256) {
  try {
    return ReadVerified(checkpoints / name, manifest_sha256);
  } catch (const CorruptCheckpoint& error) {
    throw CorruptCheckpoint("checkpoint " + name + " is damaged: " + error.what());
  } catch (const std::exception& error) {  // nlohmann, the safetensors reader, the file system
    throw CorruptCheckpoint("checkpoint " + name + " is damaged: " + error.what());
  }
}

std::vector<CheckpointName> CheckpointsToDelete(std::vector<CheckpointName> all, const CheckpointName& newest,
                                                int64_t keep_last, int64_t keep_every) {
  std::sort(all.rbegin(), all.rend());
  std::vector<CheckpointName> to_delete;
  std::set<int64_t> steps_seen;
  for (const CheckpointName& name : all) {
    if (name > newest) continue;
    const bool first_of_step = steps_seen.insert(name.step).second;
    const bool recent = static_cast<int64_t>(steps_seen.size()) <= std::max<int64_t>(1, keep_last);
    const bool milestone = keep_every > 0 && name.step % keep_every == 0;
    if (!first_of_step || (!recent && !milestone)) to_delete.push_back(name);
  }
  return to_delete;
}

void RemovePartialCheckpoints(const fs::path& checkpoints, int64_t attempt) {
  std::error_code error;
  std::vector<fs::path> partial;
  for (const auto& entry : fs::directory_iterator(checkpoints, error)) {
    const std::string file = entry.path().filename().string();
    if (file.rfind(kTemporaryPrefix, 0) != 0) continue;
    const auto name = ParseCheckpointName(file.substr(kTemporaryPrefix.size()));
    if (!name || name->attempt <= attempt) partial.push_back(entry.path());
  }
  for (const fs::path& path : partial) fs::remove_all(path, error);
}

void DeleteCheckpoint(const fs::path& checkpoints, const CheckpointName& name) {
  // The manifest goes first: a checkpoint that lost some of its files never looks whole.
  std::error_code ignored;
  fs::remove(checkpoints / ToString(name) / kManifest, ignored);
  fs::remove_all(checkpoints / ToString(name), ignored);
}

}  // namespace longspan::trainer
