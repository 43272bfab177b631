#include "worker/planner/step_time.h"

#include <algorithm>
#include <array>

#include "worker/planner/flops.h"
#include "worker/planner/job_shape.h"
#include "worker/planner/kept_values.h"

namespace longspan::planner {
namespace {

constexpr double kFp32Bytes = 4;

double Real(int64_t value) { return static_cast<double>(value); }

// Causal pairs of a block.
double Pairs(int64_t tokens) { return Real(tokens) * Real(tokens + 1) / 2; }
// Of blocks one after another, the last of which may be shorter.
double PairsOfBlocks(int64_t tokens, int64_t block) {
  return Real(tokens / block) * Pairs(block) + Pairs(tokens % block);
}

double Products(const LinearShape& linear, int64_t rows) {
  return 2 * Real(rows) * Real(linear.inputs * linear.outputs);
}

// Products of a linear layer in one pass over its rows: `times` in the forward direction, and backward.
Work Forward(const StepShape& shape, const LinearShape& linear, int64_t tiles) {
  Work work;
  const double size = Real(linear.inputs * linear.outputs);
  const double e = Real(shape.element_bytes);
  work.gemm_flops = Products(linear, shape.rows);
  work.memory_bytes = size * e * Real(tiles);
  if (shape.BuildsWeight(linear)) {
    work.gemm_flops += 2 * size * Real(linear.ranks);
    work.memory_bytes += 2 * size * e;
  } else {
    work.gemm_flops += 2 * Real(shape.rows * linear.ranks * (linear.inputs + linear.outputs));
  }
  return work;
}

Work Backward(const StepShape& shape, const LinearShape& linear, int64_t tiles) {
  Work work = Forward(shape, linear, tiles);  // dX
  if (shape.trains_weights) work.gemm_flops += Products(linear, shape.rows);
  if (shape.trains_weights) work.memory_bytes += 2 * kFp32Bytes * Real(linear.inputs * linear.outputs * tiles);
  // x·Aᵀ again and dA; dy·B and dB.
  work.gemm_flops += 4 * Real(shape.rows * linear.ranks * (linear.inputs + linear.outputs));
  return work;
}

// Values of a row that are read and written beside the products.
double NormsPerRow(const StepShape& shape) { return 4 * Real(shape.hidden_size); }
double HeadsPerRow(const StepShape& shape) { return 2 * Real(shape.query_key_value_size()); }
double MlpPerRow(const StepShape& shape) { return Real(shape.mlp_in_size() + shape.intermediate_size); }
double ResidualsPerRow(const StepShape& shape) { return 6 * Real(shape.hidden_size); }

class LayerWork {
 public:
  LayerWork(const PlannedJob& job, const StepShape& shape, const MemoryPolicy& policy)
      : shape_(shape), keep_(policy.keep), tiles_heads_(TilesHeads(shape, policy)) {
    const int64_t tile = std::clamp<int64_t>(policy.tile_tokens, 1, std::max<int64_t>(1, shape.rows));
    tiles_ = (shape.rows + tile - 1) / tile;
    const double pairs = AttendedPairs(job.spec.attention, job.spec.context_length,
                                       jobfile::ResolvedGroupSize(job.spec), shape.query_heads);
    pair_products_ = 2 * pairs * Real(shape.head_dim) * Real(job.micro_batch());
    pair_products_ /= Real(jobfile::RanksPerSequence(job.spec));
  }

  Work ForwardPass() const {
    Work work;
    for (const LinearShape* linear : Linears()) work += Forward(shape_, *linear, tiles_);
    work.attention_flops = 2 * pair_products_;  // q·kᵀ and p·v
    Move(NormsPerRow(shape_) + HeadsPerRow(shape_) + MlpPerRow(shape_) + ResidualsPerRow(shape_), &work);
    return work;
  }

  // Without what runs a whole segment again.
  Work BackwardPass() const {
    Work work;
    for (const LinearShape* linear : Linears()) work += Backward(shape_, *linear, tiles_);
    work.attention_flops = 5 * pair_products_;  // q·kᵀ again, and the gradients of p, v, q and k
    Move(2 * (NormsPerRow(shape_) + HeadsPerRow(shape_) + MlpPerRow(shape_) + ResidualsPerRow(shape_)), &work);
    Move(NormsPerRow(shape_), &work);  // norms are never kept
    if (!Keeps(keep_, KeepPolicy::kAttentionOutput)) work.attention_flops += 2 * pair_products_;
    if (!Keeps(keep_, KeepPolicy::kQueryKeyValue)) {
      work += Forward(shape_, shape_.query_key_value, tiles_);
      Move(HeadsPerRow(shape_), &work);
    }
    if (!Keeps(keep_, KeepPolicy::kResidual) && !shape_.parallel_residual) {
      work += Forward(shape_, shape_.output, tiles_);
    }
    if (!Keeps(keep_, KeepPolicy::kGateUp)) work += Forward(shape_, shape_.mlp_in, tiles_);
    if (tiles_heads_) Move(HeadsPerRow(shape_), &work);  // to the place of q, k and v
    return work;
  }

 private:
  std::array<const LinearShape*, 4> Linears() const {
    return {&shape_.query_key_value, &shape_.output, &shape_.mlp_in, &shape_.mlp_out};
  }
  void Move(double values_per_row, Work* work) const {
    work->memory_bytes += values_per_row * Real(shape_.rows * shape_.element_bytes);
  }

  const StepShape& shape_;
  const KeepPolicy keep_;
  const bool tiles_heads_;
  int64_t tiles_ = 1;
  double pair_products_ = 0;  // FLOPs of one of the products with every pair
};

// The logits, the loss and its gradient, all in the forward pass.
Work LossWork(const StepShape& shape, const MemoryPolicy& policy) {
  const double rows = Real(shape.rows), vocabulary = Real(shape.vocab_size), e = Real(shape.element_bytes);
  const int64_t tile = std::clamp<int64_t>(policy.loss_tile_tokens, 1, std::max<int64_t>(1, shape.rows));
  const double tiles = Real((shape.rows + tile - 1) / tile);
  const double head = Real(shape.hidden_size) * vocabulary;
  Work work;
  work.gemm_flops = (shape.trains_head ? 3 : 2) * 2 * rows * head;
  work.memory_bytes = tiles * 2 * head * e + rows * vocabulary * (2 * e + 2 * kFp32Bytes);
  if (shape.trains_head) work.memory_bytes += tiles * 2 * head * kFp32Bytes;
  return work;
}

// By how much the attention of the rank that has most of it is above the average of those that share a sequence. Under
// full attention that is the last one, whose tokens see all others.
double AttentionImbalance(const PlannedJob& job) {
  const double ranks = Real(jobfile::RanksPerSequence(job.spec));
  return job.spec.attention.kind == jobfile::AttentionKind::kFull ? (2 * ranks - 1) / ranks : 1;
}

double Seconds(const Work& work, const DeviceProfile& device) {
  return work.gemm_flops / device.gemm_flops_per_second + work.attention_flops / device.attention_flops_per_second +
         work.memory_bytes / device.memory_bytes_per_second;
}

}  // namespace

double AttendedPairs(const jobfile::AttentionSection& attention, int64_t tokens, int64_t group, int64_t query_heads) {
  if (attention.kind == jobfile::AttentionKind::kFull) return Real(query_heads) * Pairs(tokens);
  const double unshifted = PairsOfBlocks(tokens, group);
  if (attention.kind == jobfile::AttentionKind::kShort) return Real(query_heads) * unshifted;
  const int64_t shifted_heads = query_heads / 2;
  const int64_t first = std::min(tokens, group - group / 2);
  const int64_t rest = tokens - first;
  double shifted = Pairs(first) + PairsOfBlocks(rest, group);
  if (attention.edge == jobfile::AttentionEdge::kWrap && rest > 0) {
    shifted += Real(rest % group == 0 ? group : rest % group) * Real(first);
  }
  return Real(query_heads - shifted_heads) * unshifted + Real(shifted_heads) * shifted;
}

Work& Work::operator+=(const Work& other) {
  gemm_flops += other.gemm_flops;
  attention_flops += other.attention_flops;
  memory_bytes += other.memory_bytes;
  return *this;
}
Work& Work::operator*=(double factor) {
  gemm_flops *= factor;
  attention_flops *= factor;
  memory_bytes *= factor;
  return *this;
}

double PassWork::executed_flops() const {
  return forward.gemm_flops + forward.attention_flops + backward.gemm_flops + backward.attention_flops;
}

PassWork WorkOfPass(const PlannedJob& job, const StepShape& shape, const MemoryPolicy& policy) {
  const LayerWork layer(job, shape, policy);
  const KeptPlan kept = PlanKeptValues(shape, policy);
  PassWork pass;
  pass.forward = layer.ForwardPass();
  pass.backward = layer.BackwardPass();
  // Every segment but the last runs again as a whole.
  const int64_t again = kept.segment == 0 ? 0 : (kept.long_lived - 1) * kept.checkpoint_every;
  Work rerun = pass.forward;
  rerun *= Real(again);
  pass.forward *= Real(shape.num_hidden_layers);
  pass.backward *= Real(shape.num_hidden_layers);
  pass.backward += rerun;
  pass.forward += LossWork(shape, policy);
  return pass;
}

double ModelFlopsOfStep(const PlannedJob& job) {
  const int64_t tokens = job.spec.context_length;
  const bool full = job.spec.attention.kind == jobfile::AttentionKind::kFull;
  const int64_t attended = full ? tokens : jobfile::ResolvedGroupSize(job.spec);
  const ForwardFlops forward = ForwardFlopsOfSequence(ModelShapeOf(job.config), tokens, attended);
  return Real(job.spec.training.global_batch) * TrainingFlopsOfSequence(forward, job.adapter.trains_base);
}

StepTime TimeOfStep(const PlannedJob& job, const PassWork& pass, int64_t host_traffic_bytes, int64_t trained_values) {
  const DeviceProfile& device = job.device;
  // The last pass of a step may have fewer sequences: as much less work.
  const double passes = Real(job.sequences_of_rank()) / Real(job.micro_batch());
  Work both = pass.forward;
  both += pass.backward;
  const double copy = Real(host_traffic_bytes) / 2 / device.host_copy_bytes_per_second;
  const double host =
      std::max(0.0, copy - Seconds(pass.forward, device)) + std::max(0.0, copy - Seconds(pass.backward, device));
  // Gradients are zeroed, scaled, measured, clipped; AdamW reads them, moments and master, and writes all but the
  // first.
  const double optimizer_bytes = Real(trained_values) * (13 * kFp32Bytes + Real(BytesOf(*job.spec.training.dtype)));
  const double sequences = Real(job.spec.training.global_batch);
  StepTime time;
  const double ranks_per_sequence = Real(jobfile::RanksPerSequence(job.spec));
  time.executed_flops = pass.executed_flops() * ranks_per_sequence * sequences / Real(job.micro_batch());
  time.seconds_gemm = passes * both.gemm_flops / device.gemm_flops_per_second;
  time.seconds_attention = passes * both.attention_flops * AttentionImbalance(job) / device.attention_flops_per_second;
  time.seconds_memory = passes * both.memory_bytes / device.memory_bytes_per_second;
  time.seconds_host = passes * host;
  time.seconds_optimizer = optimizer_bytes / device.memory_bytes_per_second;
  time.seconds =
      time.seconds_gemm + time.seconds_attention + time.seconds_memory + time.seconds_host + time.seconds_optimizer;
  time.tokens_per_second = sequences * Real(job.spec.context_length) / time.seconds;
  return time;
}

}  // namespace longspan::planner
