// What a job's `rope` makes of a model's positions.
//
// Never overwrites a scaling that the model has already:
//
//   model has ↓     job asks for the same kind     ntk, theta            another kind
//   nothing         that kind                      a larger theta        that kind
//   a scaling       factors multiply, on the       theta changes,        refused, naming both
//                   original length                the scaling stays
//
// Of the same kind, parameters that the job does not give stay the model's. A job that stretches nothing (its factor
// comes out as 1) changes nothing, whatever kind it names. Pure, thread-safe.
#pragma once

#include <cstdint>

#include "proto/jobfile/job_spec.h"
#include "worker/model_config/rope_scaling.h"

namespace longspan::trainer {

// `reach` is ReachOf the model's own positions, tokens. The factor, where the job does not give it, is context_length
// over that, at least 1; with rope.original_length it is what is left of context_length over that length after the
// model's own factor. A job of kind evaluate without a `rope` measures the model as it is.
//
// SpecError: two kinds that do not go together; a linear model whose config.json does not say whether
// max_position_embeddings is the length before or after the scaling (both are common), and a job that gives neither
// rope.factor nor rope.original_length; an original_length that contradicts the model's; ntk or dynamic with 2 rotary
// dimensions; yarn with a theta of at most 1.
RopeParameters ExtendRope(const RopeParameters& own, int64_t reach, int64_t rotary_dims, const jobfile::JobSpec& spec);

}  // namespace longspan::trainer
