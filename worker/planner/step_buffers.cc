#include "worker/planner/step_buffers.h"

#include <algorithm>
#include <array>

namespace longspan::planner {
namespace {

constexpr int64_t kFp32Bytes = 4;
constexpr int64_t kNormSumParts = 16;  // row_loops.h sums gradients over rows in so many parts

constexpr unsigned kForward = kForwardAttention | kForwardMlp;
constexpr unsigned kBackward = kBackwardRecompute | kBackwardMlp | kBackwardAttention | kBackwardProjection;

// The linear layers, in the order of the layer, with the stages that multiply with them.
struct LinearUse {
  const LinearShape* shape;
  Slot scratch;
  unsigned stages;
};

std::array<LinearUse, 4> LinearsOf(const StepShape& shape) {
  return {{{&shape.query_key_value, Slot::kScratchQueryKeyValue,
            kForwardAttention | kBackwardRecompute | kBackwardProjection},
           {&shape.output, Slot::kScratchOutput, kForwardMlp | kBackwardMlp},
           {&shape.mlp_in, Slot::kScratchMlpIn, kForwardMlp | kBackwardMlp},
           {&shape.mlp_out, Slot::kScratchMlpOut, kForwardMlp | kBackwardMlp}}};
}

// The linear layers' stages in which Backward runs.
constexpr unsigned kLinearBackward = kBackwardMlp | kBackwardProjection;

class BufferList {
 public:
  void Add(Slot slot, int64_t bytes, unsigned stages) {
    if (bytes > 0 && stages != 0) buffers_.push_back({slot, bytes, stages});
  }
  std::vector<Buffer> Take() { return std::move(buffers_); }

 private:
  std::vector<Buffer> buffers_;
};

void AddLora(const StepShape& shape, int64_t tile, BufferList* list) {
  int64_t ranks = 0, a = 0, b = 0, inputs = 0;
  bool apart = false;  // LoRA's own products in the forward pass too
  for (const LinearUse& linear : LinearsOf(shape)) {
    if (linear.shape->ranks == 0) continue;
    ranks = std::max(ranks, linear.shape->ranks);
    a = std::max(a, linear.shape->ranks * linear.shape->inputs);
    b = std::max(b, linear.shape->ranks * linear.shape->outputs);
    inputs = std::max(inputs, linear.shape->inputs);
    apart = true;
  }
  if (!apart) return;
  // Folded, LoRA is part of the weight in the forward pass; counting it there all the same costs next to nothing.
  const unsigned forward_too = kForward | kBackwardRecompute | kLinearBackward;
  list->Add(Slot::kLoraInner, tile * ranks * shape.element_bytes, forward_too);
  list->Add(Slot::kLoraInnerGradient, tile * ranks * shape.element_bytes, kLinearBackward);
  list->Add(Slot::kLoraAGradient, a * shape.element_bytes, kLinearBackward);
  list->Add(Slot::kLoraBGradient, b * shape.element_bytes, kLinearBackward);
  if (!shape.dropout) return;
  list->Add(Slot::kDropped, tile * inputs * shape.element_bytes, forward_too);
  list->Add(Slot::kDroppedGradient, tile * inputs * shape.element_bytes, kLinearBackward);
}

void AddMlp(const StepShape& shape, const MemoryPolicy& policy, int64_t tile, BufferList* list) {
  const int64_t e = shape.element_bytes;
  const unsigned both = kForwardMlp | kBackwardMlp;
  const bool keeps_residual = Keeps(policy.keep, KeepPolicy::kResidual) && !shape.parallel_residual;
  const bool keeps_inner = Keeps(policy.keep, KeepPolicy::kGateUp);
  // Where only the segment that runs back keeps them, the forward pass of the others has them in the arena.
  const bool somebody_drops = policy.checkpoint_every > 1;
  if (!keeps_residual || somebody_drops) list->Add(Slot::kResidual, tile * shape.hidden_size * e, both);
  if (!keeps_inner || somebody_drops) list->Add(Slot::kMlpInner, tile * shape.mlp_in_size() * e, both);
  if (shape.has_gate) list->Add(Slot::kMlpSigmoid, tile * shape.intermediate_size * kFp32Bytes, both);
  list->Add(Slot::kMlpProduct, tile * shape.intermediate_size * e, both);
  list->Add(Slot::kMlpProductGradient, tile * shape.intermediate_size * e, kBackwardMlp);
  list->Add(Slot::kMlpInnerGradient, tile * shape.mlp_in_size() * e, kBackwardMlp);
}

void AddAttention(const StepShape& shape, const MemoryPolicy& policy, BufferList* list) {
  const int64_t e = shape.element_bytes;
  const int64_t n = shape.rows;
  const unsigned back = kBackwardRecompute | kBackwardMlp | kBackwardAttention;
  const unsigned fused_back = shape.has_head_norms ? back | kBackwardProjection : back;
  const bool somebody_drops = policy.checkpoint_every > 1;
  const int64_t turned_heads = shape.query_heads + shape.key_value_heads;
  if (!Keeps(policy.keep, KeepPolicy::kQueryKeyValue) || somebody_drops) {
    list->Add(Slot::kQueryKeyValue, n * shape.query_key_value_size() * e, kForwardAttention | fused_back);
  }
  if (shape.has_head_norms) {
    list->Add(Slot::kTurnedHeads, n * turned_heads * shape.head_dim * e, kForwardAttention | back);
    list->Add(Slot::kHeadStatistics, n * turned_heads * kFp32Bytes, kForwardAttention | fused_back);
  }
  if (!Keeps(policy.keep, KeepPolicy::kAttentionOutput) || somebody_drops) {
    list->Add(Slot::kAttentionOutput, n * shape.query_size() * e, kForward | back);
    list->Add(Slot::kLogSumExp, n * shape.query_heads * kFp32Bytes, kForward | back);
  }
  list->Add(Slot::kAttentionScratch, shape.attention_scratch_bytes,
            kForwardAttention | kBackwardRecompute | kBackwardAttention);
  list->Add(Slot::kAttentionOutputGradient, n * shape.query_size() * e, kBackwardMlp | kBackwardAttention);
  list->Add(Slot::kQueryKeyValueGradient, n * shape.query_key_value_size() * e,
            kBackwardAttention | kBackwardProjection);
}

void AddLoss(const StepShape& shape, const MemoryPolicy& policy, BufferList* list) {
  const int64_t e = shape.element_bytes;
  const int64_t l = std::min(policy.loss_tile_tokens, shape.rows);
  list->Add(Slot::kLossHidden, l * shape.hidden_size * e, kLoss);
  list->Add(Slot::kLossNormed, l * shape.hidden_size * e, kLoss);
  list->Add(Slot::kLogits, l * shape.vocab_size * e, kLoss);
  if (e != kFp32Bytes) list->Add(Slot::kLogitsFloat, l * shape.vocab_size * kFp32Bytes, kLoss);
  list->Add(Slot::kProbabilities, l * shape.vocab_size * kFp32Bytes, kLoss);
  list->Add(Slot::kLossGradient, l * shape.hidden_size * e, kLoss);
  list->Add(Slot::kLossHiddenGradient, l * shape.hidden_size * e, kLoss);
}

void AddWeights(const StepShape& shape, BufferList* list) {
  int64_t product = 0;
  for (const LinearUse& linear : LinearsOf(shape)) {
    const int64_t bytes = linear.shape->inputs * linear.shape->outputs * shape.element_bytes;
    if (linear.shape->scratch_weight) list->Add(linear.scratch, bytes, linear.stages);
    if (shape.trains_weights) product = std::max(product, bytes);
  }
  unsigned stages = shape.trains_weights ? kLinearBackward : 0;
  if (shape.trains_head) {
    product = std::max(product, shape.vocab_size * shape.hidden_size * shape.element_bytes);
    stages |= kLoss;
  }
  if (shape.element_bytes != kFp32Bytes) list->Add(Slot::kWeightProduct, product, stages);
}

}  // namespace

std::string_view NameOf(Slot slot) {
  static constexpr std::string_view kNames[] = {"hidden even",
                                                "hidden odd",
                                                "normed",
                                                "norm statistics",
                                                "norm sums",
                                                "query key value",
                                                "turned heads",
                                                "head statistics",
                                                "attention output",
                                                "logsumexp",
                                                "attention scratch",
                                                "residual",
                                                "mlp inner",
                                                "mlp sigmoid",
                                                "mlp product",
                                                "mlp product gradient",
                                                "mlp inner gradient",
                                                "normed gradient",
                                                "gradient",
                                                "attention output gradient",
                                                "query key value gradient",
                                                "scratch query key value",
                                                "scratch output",
                                                "scratch mlp in",
                                                "scratch mlp out",
                                                "lora inner",
                                                "lora inner gradient",
                                                "lora A gradient",
                                                "lora B gradient",
                                                "dropped",
                                                "dropped gradient",
                                                "weight product",
                                                "loss hidden",
                                                "loss normed",
                                                "logits",
                                                "logits float",
                                                "probabilities",
                                                "loss gradient",
                                                "loss hidden gradient"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == kSlotCount);
  return kNames[static_cast<int>(slot)];
}

std::vector<Buffer> TrainingBuffers(const StepShape& shape, const MemoryPolicy& policy) {
  BufferList list;
  const int64_t e = shape.element_bytes;
  const int64_t tile = std::min(policy.tile_tokens, shape.rows);
  const int64_t whole = shape.rows * shape.hidden_size * e;
  // The last layer's output reaches the loss; where layers in between are not kept, they pass theirs on in turns, also
  // when a segment runs again.
  const bool passes_on = policy.checkpoint_every > 1;
  list.Add(Slot::kHiddenEven, whole, passes_on ? kForward | kLoss : kForwardMlp | kLoss);
  if (passes_on) list.Add(Slot::kHiddenOdd, whole, kForward | kLoss);
  const unsigned rerun = passes_on ? kForward : 0;  // the gradient waits while a segment runs again
  list.Add(Slot::kGradient, whole, kLoss | kBackward | rerun);

  const unsigned normed = kForward | kBackwardRecompute | kBackwardMlp | kBackwardProjection;
  list.Add(Slot::kNormed, tile * shape.hidden_size * e, normed);
  const int64_t statistics_rows = std::max(tile, std::min(policy.loss_tile_tokens, shape.rows));
  list.Add(Slot::kNormStatistics, statistics_rows * 2 * kFp32Bytes, kLoss | kBackwardMlp | kBackwardProjection);
  list.Add(Slot::kNormedGradient, tile * shape.hidden_size * e, kBackwardMlp | kBackwardProjection);
  if (shape.trains_norms) {
    const int64_t sums = 2 * (kNormSumParts + 1) * std::max(shape.hidden_size, shape.head_dim) * kFp32Bytes;
    list.Add(Slot::kNormSums, sums, kLoss | kBackwardMlp | kBackwardProjection);
  }
  AddAttention(shape, policy, &list);
  AddMlp(shape, policy, tile, &list);
  AddLoss(shape, policy, &list);
  AddLora(shape, tile, &list);
  AddWeights(shape, &list);
  return list.Take();
}

ArenaLayout LayOut(std::vector<Buffer> buffers) {
  std::stable_sort(buffers.begin(), buffers.end(), [](const Buffer& a, const Buffer& b) { return a.bytes > b.bytes; });
  ArenaLayout layout;
  std::vector<Buffer> placed;
  for (const Buffer& buffer : buffers) {
    const int64_t bytes = (buffer.bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
    std::vector<ArenaLayout::Place> taken;
    for (const Buffer& other : placed) {
      if ((other.stages & buffer.stages) != 0) taken.push_back(layout.places[static_cast<int>(other.slot)]);
    }
    std::sort(taken.begin(), taken.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
    int64_t offset = 0;
    for (const ArenaLayout::Place& place : taken) {
      if (offset + bytes <= place.offset) break;
      offset = std::max(offset, place.offset + place.bytes);
    }
    layout.places[static_cast<int>(buffer.slot)] = {offset, bytes};
    layout.bytes = std::max(layout.bytes, offset + bytes);
    placed.push_back(buffer);
  }
  return layout;
}

}  // namespace longspan::planner
