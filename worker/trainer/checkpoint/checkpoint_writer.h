// Writes checkpoints beside the training: the step waits only for the copy to host memory.
//
// Owns one thread, which exists while a checkpoint is being written; at most one is. Called from the training thread
// only.
#pragma once

#include <filesystem>
#include <future>
#include <optional>
#include <vector>

#include "worker/trainer/checkpoint/checkpoint.h"

namespace longspan::trainer {

class CheckpointWriter {
 public:
  explicit CheckpointWriter(std::filesystem::path checkpoints) : checkpoints_(std::move(checkpoints)) {}
  // Waits for a write in progress; its result is lost.
  ~CheckpointWriter() = default;

  bool busy() const { return write_.valid(); }
  // Requires: not busy.
  void Start(Snapshot snapshot);
  // What became durable, once; empty while the write goes on or when there is none. Rethrows its InfrastructureError.
  std::optional<WrittenCheckpoint> Poll();
  // The same, waiting for it.
  std::optional<WrittenCheckpoint> Wait();

 private:
  std::filesystem::path checkpoints_;
  std::future<WrittenCheckpoint> write_;
};

// Deep copies of the tensors that training goes on to change.
Snapshot CopyToHost(Snapshot live);

}  // namespace longspan::trainer
