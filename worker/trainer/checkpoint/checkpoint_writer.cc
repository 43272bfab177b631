#include "worker/trainer/checkpoint/checkpoint_writer.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <utility>

namespace longspan::trainer {

void CheckpointWriter::Start(Snapshot snapshot) {
  TORCH_CHECK(!busy(), "a checkpoint is still being written");
  write_ = std::async(std::launch::async,
                      [this, snapshot = std::move(snapshot)] { return WriteCheckpoint(checkpoints_, snapshot); });
}

std::optional<WrittenCheckpoint> CheckpointWriter::Poll() {
  if (!busy() || write_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return std::nullopt;
  return write_.get();
}

std::optional<WrittenCheckpoint> CheckpointWriter::Wait() {
  if (!busy()) return std::nullopt;
  return write_.get();
}

Snapshot CopyToHost(Snapshot live) {
  // A value that is its own fp32 master, and a tied head, share one tensor: it is copied once.
  std::map<void*, at::Tensor> copies;
  const auto copy = [&](const at::Tensor& tensor) {
    auto [found, is_new] = copies.try_emplace(tensor.unsafeGetTensorImpl());
    if (is_new) found->second = tensor.to(at::kCPU, tensor.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
    return found->second;
  };
  for (NamedTensor& tensor : live.weights) tensor.second = copy(tensor.second);
  for (AdamW::State& state : live.optimizer) {
    state.master = copy(state.master);
    state.first_moment = copy(state.first_moment);
    state.second_moment = copy(state.second_moment);
  }
  return live;
}

}  // namespace longspan::trainer
