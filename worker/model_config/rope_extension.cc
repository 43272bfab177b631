#include "worker/model_config/rope_extension.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "proto/jobfile/enum_names.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

using jobfile::RopeKind;

// Empty for the kinds that only change theta.
std::optional<RopeScalingKind> ScalingOf(RopeKind kind) {
  switch (kind) {
    case RopeKind::kLinear:
      return RopeScalingKind::kLinear;
    case RopeKind::kDynamic:
      return RopeScalingKind::kDynamic;
    case RopeKind::kYarn:
      return RopeScalingKind::kYarn;
    case RopeKind::kLlama3:
      return RopeScalingKind::kLlama3;
    case RopeKind::kNtk:
    case RopeKind::kTheta:
      return std::nullopt;
  }
  return std::nullopt;
}

void CheckOriginalLength(const RopeParameters& own, const jobfile::RopeSection& job) {
  if (job.original_length && own.original_length > 0 && *job.original_length != own.original_length) {
    throw SpecError(
        fmt::format("rope.original_length: is {}, but the model's {} scaling is on an original length of {}",
                    *job.original_length, NameOf(own.kind), own.original_length));
  }
}

// Whether max_position_embeddings of a linear model is meant before or after its scaling: both are common.
void CheckReachIsKnown(const RopeParameters& own, int64_t reach, const jobfile::RopeSection& job,
                       int64_t context_length) {
  if (job.factor || job.original_length || context_length <= reach) return;
  if (own.kind != RopeScalingKind::kLinear || own.factor <= 1 || own.original_length > 0) return;
  throw SpecError(
      fmt::format("rope.original_length: is needed, because config.json has linear scaling by {} and "
                  "max_position_embeddings {}, which may be the length before or after that scaling; give the length "
                  "that the model was first trained with, or rope.factor",
                  own.factor, reach));
}

// What the job multiplies the model's own factor by.
double JobFactor(const RopeParameters& own, int64_t reach, const jobfile::RopeSection& job, int64_t context_length) {
  if (job.factor) return *job.factor;
  const auto target = static_cast<double>(context_length);
  if (!job.original_length) return std::max(1.0, target / static_cast<double>(reach));
  const double own_part = ScalingOf(job.kind) == own.kind ? own.factor : 1.0;
  return std::max(1.0, target / static_cast<double>(*job.original_length) / own_part);
}

RopeParameters WithTheta(RopeParameters rope, double theta) {
  rope.theta = theta;
  return rope;
}

void TakeParameters(const jobfile::RopeSection& job, RopeParameters* rope) {
  rope->beta_fast = job.beta_fast.value_or(rope->beta_fast);
  rope->beta_slow = job.beta_slow.value_or(rope->beta_slow);
  if (job.attention_factor) rope->attention_factor = job.attention_factor;
  rope->low_freq_factor = job.low_freq_factor.value_or(rope->low_freq_factor);
  rope->high_freq_factor = job.high_freq_factor.value_or(rope->high_freq_factor);
  if (rope->beta_fast <= rope->beta_slow) {
    throw SpecError(fmt::format("rope.beta_slow: {} must be below beta_fast {}", rope->beta_slow, rope->beta_fast));
  }
  if (rope->high_freq_factor <= rope->low_freq_factor) {
    throw SpecError(fmt::format("rope.low_freq_factor: {} must be below high_freq_factor {}", rope->low_freq_factor,
                                rope->high_freq_factor));
  }
}

[[noreturn]] void RefuseAnotherKind(RopeScalingKind own, RopeScalingKind job) {
  throw SpecError(fmt::format(
      "rope.kind: the model's positions have {} scaling already, on which {} scaling cannot be laid; use {}, "
      "ntk or theta",
      NameOf(own), NameOf(job), NameOf(own)));
}

void RefuseTwoDimensions(RopeKind kind, int64_t rotary_dims) {
  if (rotary_dims > 2) return;
  throw SpecError(
      fmt::format("rope.kind: {} needs more than the {} rotary dimensions of the model's heads; use linear or theta",
                  jobfile::NameOf(kind), rotary_dims));
}

// Its ramp is computed with logarithms to this base.
void RefuseThetaWithoutLogarithm(const RopeParameters& rope) {
  if (rope.kind != RopeScalingKind::kYarn || rope.theta > 1) return;
  throw SpecError(fmt::format("rope: theta {} must be above 1 for yarn scaling; use linear", rope.theta));
}

RopeParameters Extended(const RopeParameters& own, int64_t reach, int64_t rotary_dims, const jobfile::JobSpec& spec) {
  if (spec.kind == jobfile::JobKind::kEvaluate && !spec.rope) return own;
  const jobfile::RopeSection job = spec.rope.value_or(jobfile::RopeSection{});
  CheckOriginalLength(own, job);
  if (job.kind == RopeKind::kTheta) return WithTheta(own, job.theta.value());

  const std::optional<RopeScalingKind> kind = ScalingOf(job.kind);
  const bool another_kind = kind && own.kind != RopeScalingKind::kDefault && own.kind != *kind;
  if (!another_kind) CheckReachIsKnown(own, reach, job, spec.context_length);
  const double factor = JobFactor(own, reach, job, spec.context_length);
  // dynamic by 1 still scales beyond the original length, when somebody asks for it.
  const bool stretches_nothing =
      factor == 1 && !job.attention_factor && !(job.kind == RopeKind::kDynamic && job.factor);
  if (stretches_nothing && own.kind != kind) return own;
  if (another_kind) RefuseAnotherKind(own.kind, *kind);

  if (job.kind == RopeKind::kNtk || job.kind == RopeKind::kDynamic) RefuseTwoDimensions(job.kind, rotary_dims);
  if (job.kind == RopeKind::kNtk) {
    const auto dims = static_cast<double>(rotary_dims);
    return WithTheta(own, own.theta * std::pow(factor, dims / (dims - 2)));
  }
  RopeParameters rope = own;
  rope.kind = *kind;
  rope.factor = own.factor * factor;  // 1 where there was no scaling
  if (own.kind == RopeScalingKind::kDefault) rope.original_length = reach;
  rope.original_length = job.original_length.value_or(rope.original_length);
  TakeParameters(job, &rope);
  return rope;
}

}  // namespace

RopeParameters ExtendRope(const RopeParameters& own, int64_t reach, int64_t rotary_dims, const jobfile::JobSpec& spec) {
  RopeParameters rope = Extended(own, reach, rotary_dims, spec);
  RefuseThetaWithoutLogarithm(rope);
  return rope;
}

}  // namespace longspan::trainer
