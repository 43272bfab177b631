#include "worker/planner/attention_temporaries.h"

#include <algorithm>

#include "proto/jobfile/job_file.h"

namespace longspan::planner {
namespace {

// A call of the whole groups of so many query heads, and one of what is left of a group.
void AppendHeads(DenseCall call, int64_t heads, int64_t group, std::vector<DenseCall>* calls) {
  if (heads / group > 0) {
    call.key_value_heads = heads / group;
    call.query_heads = call.key_value_heads * group;
    calls->push_back(call);
  }
  if (heads % group > 0) {
    call.key_value_heads = 1;
    call.query_heads = heads % group;
    calls->push_back(call);
  }
}

// Documents are cut at places that nobody knows yet, their pieces padded one by one, by the same bound: at worst all
// rows of all heads at once, a piece each.
int64_t OfDocuments(const PlannedJob& job, const StepShape& shape) {
  DenseCall call;
  call.blocks = 1;
  call.query_heads = shape.query_heads;
  call.key_value_heads = shape.key_value_heads;
  call.length = call.segments = job.rows();
  call.head_dim = shape.head_dim;
  call.element_bytes = shape.element_bytes;
  return std::min(kDensePartBytes, BackwardTemporaries(call));
}

}  // namespace

std::vector<DenseCall> DenseCallsOf(const PlannedJob& job, const StepShape& shape, const MemoryPolicy& policy) {
  const int64_t sequences = job.micro_batch(), tokens = jobfile::TokensPerRank(job.spec);
  const int64_t group = shape.query_heads / shape.key_value_heads;
  DenseCall call;
  call.head_dim = shape.head_dim;
  call.element_bytes = shape.element_bytes;
  call.row_stride = shape.query_key_value_size();
  std::vector<DenseCall> calls;
  if (job.spec.attention.kind == jobfile::AttentionKind::kFull) {
    call.blocks = sequences;
    call.length = tokens;
    call.other_keys = shape.ring_rows > 0 ? tokens : 0;
    AppendHeads(call, shape.query_heads, group, &calls);
  } else {
    const int64_t size = jobfile::ResolvedGroupSize(job.spec);
    call.length = std::min(size, tokens);
    call.blocks = sequences * (tokens / call.length);
    const bool shifts = job.spec.attention.kind == jobfile::AttentionKind::kS2;
    const int64_t unshifted = shifts ? (shape.query_heads + 1) / 2 : shape.query_heads;
    AppendHeads(call, unshifted, group, &calls);
    AppendHeads(call, shape.query_heads - unshifted, group, &calls);
    if (shifts && (job.spec.attention.edge == jobfile::AttentionEdge::kWrap || shape.halo_rows > 0)) {
      call.blocks = sequences;
      call.other_keys = size - size / 2;
      AppendHeads(call, shape.query_heads - unshifted, group, &calls);
    }
  }
  if (TilesHeads(shape, policy)) {
    for (DenseCall& tiled : calls) {
      const int64_t shared_by = tiled.query_heads / tiled.key_value_heads;
      tiled.key_value_heads = std::min(tiled.key_value_heads, policy.tile_heads);
      tiled.query_heads = tiled.key_value_heads * shared_by;
    }
  }
  return calls;
}

int64_t AttentionTemporaries(const PlannedJob& job, const StepShape& shape, const MemoryPolicy& policy) {
  if (!shape.on_gpu) return 0;
  int64_t most = 0;
  const auto count = [&](const MemoryPolicy& counted, int64_t (*temporaries)(const DenseCall&)) {
    for (const DenseCall& call : DenseCallsOf(job, shape, counted)) {
      most = std::max(most, temporaries(Cut(call, PartOf(call))));
    }
  };
  MemoryPolicy untiled = policy;
  untiled.tile_heads = 0;
  count(untiled, ForwardTemporaries);
  count(policy, BackwardTemporaries);
  return job.spec.data.packing ? std::max(most, OfDocuments(job, shape)) : most;
}

}  // namespace longspan::planner
