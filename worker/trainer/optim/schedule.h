// The learning rate of each optimizer update.
//
// Pure. Update numbers count from 1 and advance only with real updates, never with skipped steps.
#pragma once

#include <cstdint>

#include "proto/jobfile/job_spec.h"

namespace longspan::trainer {

// Rises linearly from 0 over the first warmup_steps updates (the last of them has the full rate), then stays (constant)
// or falls to 0 at the end of the `steps` updates (cosine, linear). Requires update >= 1.
double LearningRate(const jobfile::TrainingSection& training, int64_t update);

}  // namespace longspan::trainer
