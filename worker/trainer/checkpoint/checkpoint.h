// Checkpoints on a directory: what a run needs to go on exactly where it was.
//
//   checkpoints/step-00000200.attempt-3/
//     adapter_model.safetensors + adapter_config.json   trained values in the compute dtype, as PEFT loads them
//                                                       (method full: model.safetensors, Hugging Face names)
//     optimizer.safetensors                             fp32: master.<name>, first_moment.<name>, second_moment.<name>
//     trainer_state.json                                counters, seeds, ranks, threads, the resolved job
//     MANIFEST.json                                     size and SHA-256 of every other file
//
// A checkpoint exists when its manifest does: everything is written under a temporary name, fsynced, renamed, and the
// directory fsynced. Nothing is ever overwritten: the attempt is part of the name. Errors: InfrastructureError when a
// write fails (disk full): older checkpoints are untouched and no partial folder stays behind.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "worker/trainer/model/safetensors.h"
#include "worker/trainer/optim/adamw.h"

namespace longspan::trainer {

struct CheckpointName {
  int64_t step = 0;
  int64_t attempt = 1;
  auto operator<=>(const CheckpointName&) const = default;  // newer is larger
};
std::string ToString(const CheckpointName& name);
std::optional<CheckpointName> ParseCheckpointName(const std::string& text);

struct TrainerState {
  int64_t step = 0;     // batches consumed; the next batch is a function of (seed, step)
  int64_t updates = 0;  // of the optimizer and the schedule: steps less the skipped ones
  int64_t nonfinite_steps = 0;
  int64_t nonfinite_steps_in_a_row = 0;
  int64_t tokens_total = 0;
  double model_flops_total = 0;
  double seconds_total = 0;  // of training, over all attempts
  int64_t memory_peak_bytes = 0;
  double loss = 0;  // of the last step that counted
  int64_t ranks = 1;
  int64_t threads = 1;
  std::string version;
  std::string dataset;  // key of the prepared data
  nlohmann::json spec;  // the resolved job
};
nlohmann::json ToDocument(const TrainerState& state);
TrainerState TrainerStateOf(const nlohmann::json& document);  // throws nlohmann's exceptions

// A copy of everything in host memory: nothing in it is shared with the training that goes on.
struct Snapshot {
  std::string job;
  int64_t attempt = 1;
  TrainerState state;
  std::string weights_file;  // adapter_model.safetensors or model.safetensors
  std::vector<NamedTensor> weights;
  nlohmann::json adapter_config;  // null: none
  std::vector<AdamW::State> optimizer;
};

struct WrittenCheckpoint {
  std::string name;
  int64_t step = 0;
  std::string manifest_sha256;
  int64_t size_bytes = 0;
  double seconds = 0;
};
WrittenCheckpoint WriteCheckpoint(const std::filesystem::path& checkpoints, const Snapshot& snapshot);

// Names of the folders that have a manifest, newest first. Not verified.
std::vector<CheckpointName> ListCheckpoints(const std::filesystem::path& checkpoints);

struct LoadedCheckpoint {
  std::string name;
  std::string manifest_sha256;
  TrainerState state;
  std::vector<AdamW::State> optimizer;  // in the order of the file
};

// Why a folder is not what its manifest says: `what()` names file and cause.
class CorruptCheckpoint : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
// Verifies the hash of the manifest (where one is given) and of every file, and reads it. Throws CorruptCheckpoint.
LoadedCheckpoint LoadCheckpoint(const std::filesystem::path& checkpoints, const std::string& name,
                                const std::string& manifest_sha256 = "");

// Which checkpoints go once `newest` is safe: of those up to it all but the newest keep_last, and but the steps
// divisible by keep_every (0: none); of several attempts at one step the newest stays. Pure.
std::vector<CheckpointName> CheckpointsToDelete(std::vector<CheckpointName> all, const CheckpointName& newest,
                                                int64_t keep_last, int64_t keep_every);

// Removes what attempts that were killed while writing left behind: temporary folders of attempts up to `attempt`.
void RemovePartialCheckpoints(const std::filesystem::path& checkpoints, int64_t attempt);
void DeleteCheckpoint(const std::filesystem::path& checkpoints, const CheckpointName& name);

}  // namespace longspan::trainer
