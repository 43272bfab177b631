// Sums over ranks of tensors that lie on GPUs: NCCL through c10d, on a stream of its own, beside the Gloo group that
// the ranks have for everything else. Private to this folder.
//
// A peer that dies or hangs leaves an NCCL kernel waiting on the GPU, which NCCL itself may notice late. It need not:
// every step ends with a control word over Gloo, which breaks with the connection, and whoever gives up aborts this
// group, so that nothing waits on the GPU any more.
#pragma once

#include <ATen/ATen.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "worker/trainer/parallel/communicator.h"

namespace longspan::trainer {

class GpuGroup {
 public:
  struct Options {
    int64_t rank = 0, world_size = 1;
    std::chrono::milliseconds timeout{0};  // of a collective
  };
  // Meets the other ranks at the store. SpecError in a build without CUDA, InfrastructureError when a rank is missing.
  static std::unique_ptr<GpuGroup> Open(const c10::intrusive_ptr<c10d::Store>& store, const Options& options);
  virtual ~GpuGroup() = default;  // aborts what is under way

  // As Communicator::StartAllReduce; Wait lets what computes afterwards wait for the sum, not the caller.
  virtual std::unique_ptr<Communicator::Pending> StartAllReduce(at::Tensor tensor) = 0;
  // Of the sums that ended, one after the other.
  virtual std::chrono::nanoseconds busy_time() const = 0;
};

}  // namespace longspan::trainer
