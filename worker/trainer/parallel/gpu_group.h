// Collectives of tensors that lie on GPUs: NCCL through c10d, on a stream of its own, beside the Gloo group that the
// ranks have for everything else. Private to this folder.
//
// One communicator and one stream take everything in the order of the starts, so all ranks must start what they take
// part in together in the same order, of whatever kind. (Two communicators would lift that, but then the kernels of
// both may wait for each other's place on two GPUs.) Sums beside gathers that other ranks make without computing are
// therefore started after these (SumsStart::kInFinish).
//
// A start waits for what the caller's stream has been given until then; Wait lets that stream wait. Nobody's processor
// does, so times are taken by events on the streams and read when these have passed: nothing is synchronised for them.
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

  // As those of Communicator. What they return must not outlive this group.
  virtual std::unique_ptr<Communicator::Pending> StartAllReduce(at::Tensor tensor) = 0;
  virtual std::unique_ptr<Communicator::Pending> StartAllGather(const at::Tensor& local, const at::Tensor& out) = 0;
  virtual std::unique_ptr<Communicator::Pending> StartExchange(const Communicator::Exchange& exchange) = 0;

  // As in CollectiveUse, of those whose events have passed.
  struct Times {
    std::chrono::nanoseconds busy{0}, waited{0};
  };
  virtual Times times(Collective kind) = 0;
};

}  // namespace longspan::trainer
