// Checkpoint folders of the fake trainer: real names, real manifests, a few bytes of state.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/fake_trainer/history.h"

namespace longspan::fake_trainer {

struct SavedCheckpoint {
  std::string name;  // "step-00000010.attempt-2"
  std::string manifest_sha256;
  int64_t size_bytes = 0;
};

// Writes checkpoints/<name>/ below the job's folder, durable when this returns.
SavedCheckpoint SaveCheckpoint(const std::filesystem::path& work, const std::string& job, int64_t attempt,
                               const History& history);

// Its history, after checking its manifest's hash (when one is given) and every file's; throws std::runtime_error on
// any disagreement.
History LoadCheckpoint(const std::filesystem::path& work, const std::string& name, const std::string& manifest_sha256);

// Names of the folders below checkpoints/, newest first; not verified.
std::vector<std::string> ListCheckpoints(const std::filesystem::path& work);

// What earlier attempts were writing when they died.
void DeletePartial(const std::filesystem::path& work);

// Deletes all but the newest `keep_last` checkpoints up to the recorded one.
void DeleteOlder(const std::filesystem::path& work, const std::string& recorded, int64_t keep_last);

}  // namespace longspan::fake_trainer
