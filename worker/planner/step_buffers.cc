#include "worker/planner/step_buffers.h"

#include <algorithm>
#include <array>
#include <bit>

namespace longspan::planner {
namespace {

constexpr int64_t kFp32Bytes = 4;

constexpr unsigned kForward = kForwardAttention | kForwardMlp;
constexpr unsigned kBackward = kBackwardRecompute | kBackwardMlp | kBackwardAttention | kBackwardProjection;
constexpr unsigned kEveryStage = 2 * kBackwardProjection - 1;

int64_t Aligned(int64_t bytes) { return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

// The stages of rerun follow those of forward, where there are any.
unsigned Rerun(unsigned stages) {
  return ((stages & kForwardAttention) != 0 ? kRerunAttention : 0u) | ((stages & kForwardMlp) != 0 ? kRerunMlp : 0u);
}

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
  // `stages_present`: those that this kind of pass has.
  explicit BufferList(unsigned stages_present) : stages_present_(stages_present) {}

  void Add(Slot slot, int64_t bytes, unsigned stages) { AddFirstTime(slot, bytes, stages | Rerun(stages)); }
  // In the stages of forward, but not when a segment runs again.
  void AddFirstTime(Slot slot, int64_t bytes, unsigned stages) {
    stages &= stages_present_;
    if (bytes > 0 && stages != 0) buffers_.push_back({slot, bytes, stages});
  }
  // Of a value that a policy may keep. Kept, it needs a buffer only in the forward pass of segments that will run
  // again.
  void AddUnlessKept(bool kept, bool segments, Slot slot, int64_t bytes, unsigned stages) {
    if (!kept) {
      Add(slot, bytes, stages);
    } else if (segments) {
      AddFirstTime(slot, bytes, stages & kForward);
    }
  }
  std::vector<Buffer> Take() { return std::move(buffers_); }

 private:
  unsigned stages_present_;
  std::vector<Buffer> buffers_;
};

// Of results 128 rows or columns long, four for each multiprocessor of the largest GPUs; of sums, at least 256 terms.
constexpr int64_t kLoraBlocks = 528, kLoraKeptOfBlock = 128, kLoraSummedMin = 256;

int64_t DividedUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What LoRA's kernels on a GPU sum up in, over all of the layers that have one.
int64_t LoraSumBytes(const StepShape& shape, int64_t tile) {
  int64_t elements = 0;
  for (const LinearUse& linear : LinearsOf(shape)) {
    const LinearShape& size = *linear.shape;
    const int64_t ranks = std::min(size.ranks, kLoraKernelRanksMax);
    elements = std::max({elements, LoraSumElements(ranks, tile, std::max(size.inputs, size.outputs)),
                         LoraSumElements(ranks, std::max(size.inputs, size.outputs), tile)});
  }
  return elements * kFp32Bytes;
}

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
  const bool has_kernels = shape.on_gpu && shape.element_bytes != kFp32Bytes;
  if (has_kernels) list->Add(Slot::kLoraSums, LoraSumBytes(shape, tile), forward_too);
  if (!has_kernels || ranks > kLoraKernelRanksMax) {
    list->Add(Slot::kLoraAGradient, a * shape.element_bytes, kLinearBackward);
    list->Add(Slot::kLoraBGradient, b * shape.element_bytes, kLinearBackward);
  }
  if (!shape.dropout) return;
  list->Add(Slot::kDropped, tile * inputs * shape.element_bytes, forward_too);
  list->Add(Slot::kDroppedGradient, tile * inputs * shape.element_bytes, kLinearBackward);
}

void AddFp8(const StepShape& shape, int64_t tile, BufferList* list) {
  if (!shape.fp8) return;
  int64_t columns = 0;
  for (const LinearUse& linear : LinearsOf(shape)) {
    columns = std::max({columns, linear.shape->inputs, linear.shape->outputs});
  }
  const unsigned stages = kForward | kBackwardRecompute | kLinearBackward;
  list->Add(Slot::kFp8Codes, tile * columns, stages);
  list->Add(Slot::kFp8Scales, tile * kFp32Bytes, stages);
}

void AddMlp(const StepShape& shape, const MemoryPolicy& policy, int64_t tile, BufferList* list) {
  const int64_t e = shape.element_bytes;
  const unsigned both = kForwardMlp | kBackwardMlp;
  const bool segments = policy.checkpoint_every > 1;
  const bool keeps_residual = Keeps(policy.keep, KeepPolicy::kResidual) && !shape.parallel_residual;
  list->AddUnlessKept(keeps_residual, segments, Slot::kResidual, tile * shape.hidden_size * e, both);
  list->AddUnlessKept(Keeps(policy.keep, KeepPolicy::kGateUp), segments, Slot::kMlpInner,
                      tile * shape.mlp_in_size() * e, both);
  if (shape.has_gate && !shape.on_gpu) list->Add(Slot::kMlpSigmoid, tile * shape.intermediate_size * kFp32Bytes, both);
  list->Add(Slot::kMlpProduct, tile * shape.intermediate_size * e, both);
  list->Add(Slot::kMlpProductGradient, tile * shape.intermediate_size * e, kBackwardMlp);
  list->Add(Slot::kMlpInnerGradient, tile * shape.mlp_in_size() * e, kBackwardMlp);
}

void AddAttention(const StepShape& shape, const MemoryPolicy& policy, BufferList* list) {
  const int64_t e = shape.element_bytes;
  const int64_t n = shape.rows;
  const unsigned back = kBackwardRecompute | kBackwardMlp | kBackwardAttention;
  // Tile by tile of heads the gradients of q, k and v take their place.
  const bool tiles_heads = TilesHeads(shape, policy);
  const unsigned fused_back = shape.has_head_norms || tiles_heads ? back | kBackwardProjection : back;
  const bool segments = policy.checkpoint_every > 1;
  const int64_t turned_heads = shape.query_heads + shape.key_value_heads;
  list->AddUnlessKept(Keeps(policy.keep, KeepPolicy::kQueryKeyValue), segments, Slot::kQueryKeyValue,
                      n * shape.query_key_value_size() * e, kForwardAttention | fused_back);
  if (shape.has_head_norms) {
    list->Add(Slot::kTurnedHeads, n * turned_heads * shape.head_dim * e, kForwardAttention | back);
    list->Add(Slot::kHeadStatistics, n * turned_heads * kFp32Bytes, kForwardAttention | fused_back);
  }
  const bool keeps_output = Keeps(policy.keep, KeepPolicy::kAttentionOutput);
  list->AddUnlessKept(keeps_output, segments, Slot::kAttentionOutput, n * shape.query_size() * e, kForward | back);
  list->AddUnlessKept(keeps_output, segments, Slot::kLogSumExp, n * shape.query_heads * kFp32Bytes, kForward | back);
  list->Add(Slot::kAttentionScratch, shape.attention_scratch_bytes,
            kForwardAttention | kBackwardRecompute | kBackwardAttention);
  list->Add(Slot::kAttentionOutputGradient, n * shape.query_size() * e, kBackwardMlp | kBackwardAttention);
  const int64_t heads_at_once = tiles_heads ? policy.tile_heads : shape.key_value_heads;
  list->Add(Slot::kQueryKeyValueGradient, n * shape.query_key_value_size(heads_at_once) * e,
            tiles_heads ? kBackwardAttention : kBackwardAttention | kBackwardProjection);
}

// What attention exchanges with other ranks of a sequence. A halo travels while the MLP goes back, a ring only within
// attention.
void AddSequence(const StepShape& shape, BufferList* list) {
  const int64_t e = shape.element_bytes;
  const int64_t halo = shape.halo_rows * shape.moved_key_value_size() * e;
  const unsigned halo_stages = kForwardAttention | kBackwardRecompute | kBackwardMlp | kBackwardAttention;
  list->Add(Slot::kHaloSent, halo, halo_stages);
  list->Add(Slot::kHalo, halo, halo_stages);
  list->Add(Slot::kHaloGradient, halo, kBackwardAttention);
  if (shape.ring_rows == 0) return;
  const int64_t block = shape.ring_rows * 2 * shape.key_value_heads * shape.head_dim * e;
  const unsigned attends = kForwardAttention | kBackwardRecompute;
  list->Add(Slot::kRingBlocks, 2 * block, attends | kBackwardAttention);
  list->Add(Slot::kRingOutput, shape.rows * shape.query_size() * e, attends);
  list->Add(Slot::kRingLogSumExp, shape.rows * shape.query_heads * kFp32Bytes, attends);
  list->Add(Slot::kRingGradients, 3 * block, kBackwardAttention);
}

void AddLoss(const StepShape& shape, const MemoryPolicy& policy, BufferList* list) {
  const int64_t e = shape.element_bytes;
  const int64_t l = std::min(policy.loss_tile_tokens, shape.rows);
  list->Add(Slot::kLossHidden, l * shape.hidden_size * e, kLoss);
  list->Add(Slot::kLossNormed, l * shape.hidden_size * e, kLoss);
  list->Add(Slot::kLogits, l * shape.vocab_size * e, kLoss);
  if (!shape.on_gpu) {  // where the gradient takes the place of the logits
    if (e != kFp32Bytes) list->Add(Slot::kLogitsFloat, l * shape.vocab_size * kFp32Bytes, kLoss);
    list->Add(Slot::kProbabilities, l * shape.vocab_size * kFp32Bytes, kLoss);
  }
  list->Add(Slot::kLossGradient, l * shape.hidden_size * e, kLoss);
  list->Add(Slot::kLossHiddenGradient, l * shape.hidden_size * e, kLoss);
}

void AddColumnSums(const StepShape& shape, const MemoryPolicy& policy, BufferList* list) {
  int64_t columns = 0;
  // LayerNorm sums those of its weight and of its bias at once.
  if (shape.trains_norms) columns = 2 * std::max(shape.hidden_size, shape.head_dim);
  if (shape.trains_biases) {
    for (const LinearUse& linear : LinearsOf(shape)) columns = std::max(columns, linear.shape->outputs);
  }
  unsigned stages = kLoss | kBackwardMlp | kBackwardProjection;
  if (shape.has_head_norms && TilesHeads(shape, policy)) stages |= kBackwardAttention;
  const int64_t parts = shape.on_gpu ? kGpuColumnSumParts : kColumnSumParts;
  list->Add(Slot::kColumnSums, parts * columns * kFp32Bytes, stages);
}

void AddWeights(const StepShape& shape, BufferList* list) {
  int64_t product = 0;
  for (const LinearUse& linear : LinearsOf(shape)) {
    const int64_t bytes = linear.shape->inputs * linear.shape->outputs * shape.element_bytes;
    if (shape.CopiesWeight(*linear.shape)) list->Add(linear.scratch, bytes, linear.stages);
    if (shape.trains_weights) product = std::max(product, bytes);
  }
  unsigned stages = shape.trains_weights ? kLinearBackward : 0;
  if (shape.trains_head) {
    product = std::max(product, shape.vocab_size * shape.hidden_size * shape.element_bytes);
    stages |= kLoss;
  }
  if (shape.element_bytes != kFp32Bytes) list->Add(Slot::kWeightProduct, product, stages);
}

std::vector<Buffer> BuffersOf(const StepShape& shape, const MemoryPolicy& policy, unsigned stages) {
  BufferList list(stages);
  const int64_t e = shape.element_bytes;
  const int64_t tile = std::min(policy.tile_tokens, shape.rows);
  const int64_t whole = shape.rows * shape.hidden_size * e;
  // The last layer's output reaches the loss, and so do layers change it whose successor's input is not kept.
  const bool keeps_every_input = (stages & kBackward) != 0 && policy.checkpoint_every <= 1;
  list.AddFirstTime(Slot::kHidden, whole, keeps_every_input ? kForwardMlp | kLoss : kForward | kLoss);
  list.AddFirstTime(Slot::kGradient, whole, kLoss | kBackward | kRerunAttention | kRerunMlp);

  const unsigned normed = kForward | kBackwardRecompute | kBackwardMlp | kBackwardProjection;
  list.Add(Slot::kNormed, tile * shape.hidden_size * e, normed);
  const int64_t statistics_rows = std::max(tile, std::min(policy.loss_tile_tokens, shape.rows));
  list.Add(Slot::kNormStatistics, statistics_rows * 2 * kFp32Bytes, kLoss | kBackwardMlp | kBackwardProjection);
  list.Add(Slot::kNormedGradient, tile * shape.hidden_size * e, kBackwardMlp | kBackwardProjection);
  AddColumnSums(shape, policy, &list);
  AddAttention(shape, policy, &list);
  AddSequence(shape, &list);
  AddMlp(shape, policy, tile, &list);
  AddLoss(shape, policy, &list);
  AddLora(shape, tile, &list);
  AddFp8(shape, tile, &list);
  AddWeights(shape, &list);
  return list.Take();
}

}  // namespace

std::string_view NameOf(Slot slot) {
  static constexpr std::string_view kNames[] = {"hidden",
                                                "normed",
                                                "norm statistics",
                                                "column sums",
                                                "query key value",
                                                "turned heads",
                                                "head statistics",
                                                "attention output",
                                                "logsumexp",
                                                "attention scratch",
                                                "halo sent",
                                                "halo",
                                                "halo gradient",
                                                "ring blocks",
                                                "ring output",
                                                "ring logsumexp",
                                                "ring gradients",
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
                                                "lora sums",
                                                "dropped",
                                                "dropped gradient",
                                                "8-bit codes",
                                                "8-bit scales",
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

int64_t LoraSumParts(int64_t kept, int64_t summed) {
  const int64_t wanted = kLoraBlocks / std::max<int64_t>(1, DividedUp(kept, kLoraKeptOfBlock));
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, DividedUp(summed, kLoraSummedMin)));
}

int64_t LoraSumElements(int64_t ranks, int64_t kept, int64_t summed) {
  const int64_t busy = kLoraBlocks * kLoraKeptOfBlock;  // parts · kept are no more, unless there is one part
  return ranks * std::max(kept, std::min(busy, std::max<int64_t>(1, DividedUp(summed, kLoraSummedMin)) * kept));
}

bool TilesHeads(const StepShape& shape, const MemoryPolicy& policy) {
  return policy.tile_heads > 0 && policy.tile_heads < shape.key_value_heads;
}

std::vector<Buffer> TrainingBuffers(const StepShape& shape, const MemoryPolicy& policy) {
  const unsigned stages = policy.checkpoint_every > 1 ? kEveryStage : kForward | kLoss | kBackward;
  return BuffersOf(shape, policy, stages);
}

std::vector<Buffer> ForwardBuffers(const StepShape& shape, const MemoryPolicy& policy) {
  MemoryPolicy nothing_kept = policy;
  nothing_kept.keep = KeepPolicy::kInput;
  StepShape without_dropout = shape;
  without_dropout.dropout = false;
  return BuffersOf(without_dropout, nothing_kept, kForward | kLoss);
}

namespace {

struct Placed {
  ArenaLayout layout;
  size_t last = 0;  // of the buffers: the one that ends where the arena does
};

// Each in turn at the lowest place that is free in all of its stages.
Placed PlaceInOrder(const std::vector<Buffer>& buffers) {
  Placed placed;
  std::vector<ArenaLayout::Place> taken;
  for (size_t i = 0; i < buffers.size(); ++i) {
    taken.clear();
    for (size_t j = 0; j < i; ++j) {
      if ((buffers[j].stages & buffers[i].stages) == 0) continue;
      taken.push_back(placed.layout.places[static_cast<int>(buffers[j].slot)]);
    }
    std::sort(taken.begin(), taken.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
    const int64_t bytes = Aligned(buffers[i].bytes);
    int64_t offset = 0;
    for (const ArenaLayout::Place& place : taken) {
      if (offset + bytes <= place.offset) break;
      offset = std::max(offset, place.offset + place.bytes);
    }
    placed.layout.places[static_cast<int>(buffers[i].slot)] = {offset, bytes};
    if (offset + bytes <= placed.layout.bytes) continue;
    placed.layout.bytes = offset + bytes;
    placed.last = i;
  }
  return placed;
}

}  // namespace

int64_t FullestStage(const std::vector<Buffer>& buffers) {
  int64_t fullest = 0;
  for (unsigned stage = 1; stage <= kEveryStage; stage *= 2) {
    int64_t bytes = 0;
    for (const Buffer& buffer : buffers) {
      if ((buffer.stages & stage) != 0) bytes += Aligned(buffer.bytes);
    }
    fullest = std::max(fullest, bytes);
  }
  return fullest;
}

// The lowest of a few orders: large ones first, and those first that meet the most stages; of each, as long as there is
// room to gain, what came to lie on top goes before all others.
ArenaLayout LayOut(std::vector<Buffer> buffers) {
  constexpr int kTries = 6;
  const int64_t fullest = FullestStage(buffers);
  const auto by = [&buffers](const auto& size) {
    std::stable_sort(buffers.begin(), buffers.end(),
                     [&size](const Buffer& a, const Buffer& b) { return size(a) > size(b); });
  };
  ArenaLayout best;
  const auto improve = [&] {
    for (int i = 0; i < kTries && (best.bytes == 0 || best.bytes > fullest); ++i) {
      const Placed placed = PlaceInOrder(buffers);
      if (best.bytes == 0 || placed.layout.bytes < best.bytes) best = placed.layout;
      const auto last = buffers.begin() + static_cast<std::ptrdiff_t>(placed.last);
      std::rotate(buffers.begin(), last, last + 1);
    }
  };
  by([](const Buffer& buffer) { return buffer.bytes; });
  improve();
  by([](const Buffer& buffer) { return buffer.bytes * std::popcount(buffer.stages); });
  improve();
  by([](const Buffer& buffer) { return int64_t{std::popcount(buffer.stages)} * (int64_t{1} << 50) + buffer.bytes; });
  improve();
  return best;
}

}  // namespace longspan::planner
