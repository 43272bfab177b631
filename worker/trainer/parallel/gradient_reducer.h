// Adds the gradients of all ranks in buckets, while the backward pass is still running, and with them the control word:
// what every rank has to know to decide the same thing.
//
//   backward loop: Ready(7) Ready(6) ... ──► bucket full? copy into its flat tensor, start its all-reduce
//   Finish: start what is left, add the control word, wait, copy back
//
// Buckets are made once, from the back of the list (where the backward pass begins), and always start in that order, so
// every rank starts the same collectives in the same order. Tensors at least as large as a bucket are reduced in place.
// World size 1 runs the same code. Not thread-safe. Errors: InfrastructureError from the communicator.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "worker/trainer/parallel/communicator.h"

namespace longspan::trainer {

// One rank's view going in, the whole gang's coming out: sums of the numbers, "any rank says so" of the wishes.
struct ControlWord {
  double loss_sum = 0;  // nats; NaN and infinity stay visible in the sum
  int64_t scored_tokens = 0;
  bool stop = false;  // end at this step border
  bool stop_with_checkpoint = false;
  bool checkpoint_now = false;
};

// Adds up one control word over all ranks; outside of the training step (evaluation, waiting).
ControlWord ReduceControlWord(Communicator& ranks, const ControlWord& local);

inline constexpr int64_t kBucketBytes = int64_t{4} << 20;

// When the sums of complete buckets start: during the backward pass, or in Finish, for ranks whose other collectives
// come in another order beside a backward pass than beside none (parallel/gpu_group.h).
enum class SumsStart { kWhenReady, kInFinish };

class GradientReducer {
 public:
  GradientReducer(Communicator& ranks, std::vector<at::Tensor> gradients, int64_t bucket_bytes = kBucketBytes,
                  SumsStart start = SumsStart::kWhenReady);

  // The gradient of this index is complete. May be called in any order, at most once per index and step.
  void Ready(size_t index);
  // All gradients are complete. On return every gradient is the sum over all ranks.
  ControlWord Finish(const ControlWord& local);

 private:
  struct Bucket {
    std::vector<size_t> members;
    at::Tensor flat;  // fp32; the gradient itself for a bucket of one
    bool in_place = false;
    std::unique_ptr<Communicator::Pending> pending;
  };
  void StartReadyBuckets();
  void Start(Bucket& bucket);
  void CopyBack(Bucket& bucket);

  Communicator& ranks_;
  std::vector<at::Tensor> gradients_;
  std::vector<bool> ready_;
  std::vector<Bucket> buckets_;
  const SumsStart start_;
  size_t next_bucket_ = 0;
};

}  // namespace longspan::trainer
