// Checkpoint folders of the fake trainer: real names, real manifests, a few bytes of state.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace longspan::fake_trainer {

struct SavedCheckpoint {
  std::string name;  // "step-00000010.attempt-2"
  std::string manifest_sha256;
  int64_t size_bytes = 0;
};

// Writes checkpoints/<name>/ below the job's folder, durable when this returns.
SavedCheckpoint SaveCheckpoint(const std::filesystem::path& work, const std::string& job, int64_t attempt, int64_t step,
                               double loss);

// Step of a checkpoint after checking its manifest's hash and every file's; throws std::runtime_error on any
// disagreement.
int64_t LoadCheckpoint(const std::filesystem::path& work, const std::string& name, const std::string& manifest_sha256);

// Deletes all but the newest `keep_last` checkpoints up to the recorded one.
void DeleteOlder(const std::filesystem::path& work, const std::string& recorded, int64_t keep_last);

}  // namespace longspan::fake_trainer
