// Collectives of tensors on GPUs by way of the host: for ranks that NCCL cannot connect, such as two on one GPU. A
// start copies what leaves to the host and so waits for the GPU, Wait copies back what came; computation hides the
// network, but not the copies.
#pragma once

#include <memory>

#include "worker/trainer/parallel/communicator.h"

namespace longspan::trainer {

enum class Staged { kTensorsOnGpus, kAll };  // all: for tests without a GPU

// `ranks` with that around it; its other calls are those of `ranks`. Times are of `ranks`: without the copies.
std::unique_ptr<Communicator> StagedThroughHost(std::unique_ptr<Communicator> ranks, Staged staged);

}  // namespace longspan::trainer
