// The frozen linear weights of the decoder layers, where each rank holds a part of them
// (worker/planner/weight_shards.h): a layer's are gathered from all ranks while the layer before it computes.
//
//   Begin(0 1 2 …)   Use(0)            Use(1)            Use(2)
//   gather 0 ───────►│ layer 0 computes │ layer 1 computes │ …
//                    │ gather 1 ───────►│ gather 2 ───────►│       the row of layer 0 becomes that of layer 2
//
// The first layer of a pass is waited for; so is whatever the links are too slow for. A layer that is still in one of
// the two rows is not gathered again: the last two of the forward pass, and the last two of a segment that ran again,
// are there when the backward pass comes to them, with LoRA folded in.
//
// Every rank makes the same passes, whatever it has to compute; one that has nothing walks through the order. Owns its
// part, the rows and what FusedLinear::gathered points to. `ranks` must outlive it, and has joined before the first
// pass. Throws InfrastructureError when another rank died. Not thread-safe.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "worker/planner/weight_shards.h"
#include "worker/trainer/adapters/fused_linear.h"
#include "worker/trainer/parallel/communicator.h"

namespace longspan::trainer {

class ShardedWeights {
 public:
  // Of the compute dtype, on the device that computes.
  ShardedWeights(const planner::WeightShards& shards, const at::TensorOptions& stored_as, Communicator& ranks);

  // Keeps what falls into this rank's part of `stored` (n, inputs): the rows from `first_row` on of a layer's fused
  // weight, 0 to 3 in the order of the layer. Copies, into the compute dtype.
  void Keep(int64_t layer, size_t linear, int64_t first_row, const at::Tensor& stored);
  // For FusedLinear::gathered.
  GatheredWeight* Gathered(int64_t layer, size_t linear);

  // A pass that will use the layers in this order begins: the first one's weights are on their way.
  void Begin(std::vector<int64_t> order);
  // The next of the order: its weights are here from now on until the use after the next one.
  void Use(int64_t layer);
  // Such a pass of the other ranks, for one that has nothing to compute.
  void WalkThrough(std::vector<int64_t> order);

  // Gives the rows back; the next pass takes its own.
  void ReleaseRows();

  int64_t held_bytes() const { return shards_.held_bytes(); }
  int64_t gathered_bytes() const;               // of the rows; 0 before the first pass
  int64_t gathers() const { return gathers_; }  // so far
  // That passes waited for them, so far.
  double wait_seconds() const {
    return std::chrono::duration<double>(ranks_.use(Collective::kAllGather).waited).count();
  }

 private:
  static constexpr int64_t kNone = -1;
  struct Row {
    at::Tensor memory;  // (row_elements)
    int64_t layer = kNone;
    std::unique_ptr<Communicator::Pending> pending;
  };
  Row* RowOf(int64_t layer);
  void Release(Row* row);
  void Start(Row* row, int64_t layer);
  void Finish(Row* row);

  const planner::WeightShards shards_;
  const at::TensorOptions stored_as_;
  Communicator& ranks_;
  std::vector<at::Tensor> parts_;                        // of each layer, (rank_elements)
  std::vector<std::array<GatheredWeight, 4>> gathered_;  // of each layer; defined while it is in a row
  std::array<Row, planner::WeightShards::kGatheredRows> rows_;
  size_t current_ = 0;  // row of the layer that computes
  std::vector<int64_t> order_;
  size_t next_ = 0;  // in order_
  int64_t gathers_ = 0;
};

}  // namespace longspan::trainer
