// The decoder layers of one forward and backward pass: which values are kept where, which layers run again, by the plan
// (worker/planner/memory_policy.h).
//
//   checkpoint_every 1   forward  x0 ─► x1 ─► x2 ─► …        every x, and what else is kept, is an entry of KeptValues
//                        backward … ◄─ x2 ◄─ x1 ◄─ x0
//   above                forward  x0 ─► · ─► x2 ─► · ─► x4 ─► ·        checkpoints are entries; the last segment keeps
//   at once
//                        backward x4 ·◄, then x2 ─► · and ◄ ◄, then x0 ─► · and ◄ ◄
//
// Lives for one pass; holds references. Not thread-safe. Legend as in decoder_layer.h.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/planner/kept_values.h"
#include "worker/trainer/memory/arena.h"
#include "worker/trainer/memory/kept_values.h"
#include "worker/trainer/model/decoder_layer.h"
#include "worker/trainer/model/sharded_weights.h"

namespace longspan::trainer {

class TrainingLayers {
 public:
  struct Memory {
    const planner::KeptPlan& plan;  // that `kept` has begun with
    KeptValues& kept;
    Arena& arena;
    ShardedWeights* shards = nullptr;  // has begun a pass in planner::TrainingOrder; null: the weights are whole
  };
  // Of `rows` tokens in `dtype`.
  TrainingLayers(const std::vector<LayerWeights>& layers, const LayerPass& pass, const Memory& memory, int64_t rows,
                 at::ScalarType dtype);

  // Where the first layer's input (N, d) is to be written before Forward.
  at::Tensor Input();
  // The last layer's output (N, d), in the arena.
  at::Tensor Forward();
  // Turns `gradient` (N, d) of the output into that of the input; done(layer) when the gradients of a layer's weights
  // are complete. `wants_input_gradient` false: it is left unfinished.
  void Backward(const at::Tensor& gradient, bool wants_input_gradient, const std::function<void(int64_t layer)>& done);

 private:
  using PartBuffer = std::function<at::Tensor(KeptPart part, at::IntArrayRef sizes, at::ScalarType dtype)>;

  int64_t layer_count() const { return static_cast<int64_t>(layers_.size()); }
  int64_t every() const { return memory_.plan.checkpoint_every; }
  bool has_segments() const { return every() > 1; }
  int64_t SegmentBegin(int64_t layer) const { return layer / every() * every(); }
  int64_t SegmentEnd(int64_t layer) const { return std::min(layer_count(), SegmentBegin(layer) + every()); }
  bool InLastSegment(int64_t layer) const { return SegmentEnd(layer) == layer_count(); }

  // Of a layer that computes next.
  const LayerWeights& Weights(int64_t layer) const {
    if (memory_.shards != nullptr) memory_.shards->Use(layer);
    return layers_[static_cast<size_t>(layer)];
  }
  at::Tensor OpenInput(int64_t entry);
  at::Tensor ReadInput(int64_t entry);
  at::Tensor SegmentInput(int64_t layer) const;
  at::Tensor OutputOf(int64_t layer);
  KeptLayer PartsOf(const planner::KeptBytes& bytes, const PartBuffer& buffer) const;
  KeptLayer SegmentParts(int64_t layer) const;
  void CloseParts(int64_t entry);
  void RunSegmentAgain(int64_t begin);

  const std::vector<LayerWeights>& layers_;
  const LayerPass& pass_;
  const Memory memory_;
  const int64_t rows_;
  const at::ScalarType dtype_;
  at::Tensor input_;
};

}  // namespace longspan::trainer
