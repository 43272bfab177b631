#include "worker/trainer/model/training_attention.h"

#include "proto/jobfile/job_file.h"

namespace longspan::trainer {

AttentionPlan PlanTrainingAttention(const jobfile::JobSpec& spec, const AttentionShape& shape) {
  switch (spec.attention.kind) {
    case jobfile::AttentionKind::kFull:
      return PlanFullAttention(shape);
    case jobfile::AttentionKind::kShort:
      return PlanShortAttention(shape, jobfile::ResolvedGroupSize(spec));
    case jobfile::AttentionKind::kS2:
      break;
  }
  const bool wraps = spec.attention.edge == jobfile::AttentionEdge::kWrap;
  return PlanShiftedSparseAttention(shape, jobfile::ResolvedGroupSize(spec),
                                    wraps ? BlockEdge::kWrap : BlockEdge::kSplit);
}

SequencePlan PlanTrainingSequence(const jobfile::JobSpec& spec, const AttentionShape& whole,
                                  const SequencePlace& place) {
  switch (spec.attention.kind) {
    case jobfile::AttentionKind::kFull:
      return PlanFullSequence(whole, place);
    case jobfile::AttentionKind::kShort:
      return PlanShortSequence(whole, place, jobfile::ResolvedGroupSize(spec));
    case jobfile::AttentionKind::kS2:
      break;
  }
  TORCH_CHECK(spec.attention.edge == jobfile::AttentionEdge::kSplit, "wrapped groups on several ranks");
  return PlanShiftedSparseSequence(whole, place, jobfile::ResolvedGroupSize(spec));
}

}  // namespace longspan::trainer
