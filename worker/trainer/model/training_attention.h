// Which tokens attend to which while a job trains: the job's `attention` section as a plan. Evaluation and generation
// use PlanFullAttention whatever the job says.
#pragma once

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/attention/attention.h"
#include "worker/trainer/attention/sequence_attention.h"

namespace longspan::trainer {

AttentionPlan PlanTrainingAttention(const jobfile::JobSpec& spec, const AttentionShape& shape);
// Of sequences shared between ranks. The job's groups divide each rank's tokens and do not wrap.
SequencePlan PlanTrainingSequence(const jobfile::JobSpec& spec, const AttentionShape& whole,
                                  const SequencePlace& place);

}  // namespace longspan::trainer
