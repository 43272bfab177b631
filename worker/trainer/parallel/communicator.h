// How the ranks of a gang find each other, add numbers, gather parts and exchange tensors: a TCP store for the
// rendezvous, Gloo between CPUs, and between GPUs NCCL beside it. Where a tensor lies decides: on a GPU everything is
// queued, and Wait lets what computes there afterwards wait, not the caller (gpu_group.h says what order that asks of
// the ranks).
//
// Every rank makes the same collective calls in the same order; an exchange concerns the ranks that it names. World
// size 1 takes the same code without any network. A peer that dies, or that does not answer within the timeout, gives
// InfrastructureError: nothing is retried, the whole gang restarts. Traffic is neither encrypted nor authenticated. Not
// thread-safe.
#pragma once

#include <ATen/ATen.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "worker/trainer/parallel/collective_meter.h"

namespace longspan::trainer {

struct CommunicatorOptions {
  int64_t rank = 0;
  int64_t world_size = 1;
  std::string store;              // "host:port" where rank 0 listens; for rank 0, port 0 takes a free one
  std::string advertise_address;  // of this machine, as the other ranks reach it; empty: the store's host on rank 0,
                                  // else found out
  // Of tensors on GPUs. kNccl needs a GPU for each rank; kHost takes them over Gloo (host_staging.h).
  enum class GpuCollectives { kNone, kNccl, kHost };
  GpuCollectives on_gpus = GpuCollectives::kNone;
  std::chrono::milliseconds connect_timeout = std::chrono::minutes(5);  // until the store answers and all ranks joined
  std::chrono::milliseconds collective_timeout = std::chrono::minutes(10);  // one collective, slow peers included
};

class Communicator {
 public:
  // Rank 0 opens the store, the others connect to it. Ranks do not wait for each other here.
  static std::unique_ptr<Communicator> OpenStore(const CommunicatorOptions& options);
  virtual ~Communicator() = default;

  virtual int64_t rank() const = 0;
  virtual int64_t world_size() const = 0;
  // "host:port" to hand to the other ranks; empty with world size 1.
  virtual std::string store_address() const = 0;

  // A word from rank 0 to all others, each key once. Get waits as long as it takes: `keep_waiting` is called many
  // times a second and may throw; a dead rank 0 gives InfrastructureError.
  virtual void Publish(const std::string& key, const std::string& value) = 0;
  virtual std::string Get(const std::string& key, const std::function<void()>& keep_waiting) = 0;

  // All ranks meet; collectives work from here on.
  virtual void Join() = 0;

  // Sums a contiguous tensor over all ranks, in place; the same bits on every rank and in every run.
  virtual void AllReduce(at::Tensor tensor) = 0;
  // The same, in the background. Starts must come in the same order on every rank; the tensor is left alone until Wait.
  class Pending {
   public:
    virtual ~Pending() = default;
    virtual void Wait() = 0;
  };
  virtual std::unique_ptr<Pending> StartAllReduce(at::Tensor tensor) = 0;

  // Puts every rank's `local` (S) one behind the other into `out` (world_size · S), both contiguous, of one dtype and
  // alive until Wait. In the background and without a copy of its own; starts in the same order on every rank, but
  // independent of all-reduces. With equal ranks it takes as long as the slowest link needs for (world_size - 1) · S.
  virtual std::unique_ptr<Pending> StartAllGather(const at::Tensor& local, const at::Tensor& out) = 0;

  // One message to another rank and one from a rank, each contiguous; undefined: none, and its rank is not read. In the
  // background, beside the all-reduces: both tensors are left alone until Wait. Messages between two ranks arrive in
  // the order of their starts, with the bytes that the receiver expects.
  struct Exchange {
    at::Tensor sent;
    int64_t to = 0;
    at::Tensor received;
    int64_t from = 0;
  };
  virtual std::unique_ptr<Pending> StartExchange(const Exchange& exchange) = 0;

  // So far.
  virtual CollectiveUse use(Collective kind) const = 0;
  int64_t allreduce_bytes() const { return use(Collective::kAllReduce).bytes; }
  int64_t allgather_bytes() const { return use(Collective::kAllGather).bytes; }
  int64_t exchanged_bytes() const { return use(Collective::kExchange).bytes; }
};

}  // namespace longspan::trainer
