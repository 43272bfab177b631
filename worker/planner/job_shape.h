// The numbers that a job's memory and work depend on, out of the job file, config.json and what trains.
//
// Pure. Nothing here reads a file.
#pragma once

#include <cstdint>

#include "proto/jobfile/job_spec.h"
#include "worker/model_config/adapter_plan.h"
#include "worker/model_config/model_config.h"
#include "worker/planner/flops.h"
#include "worker/planner/step_buffers.h"

namespace longspan::planner {

// The dtype that a job computes in: the job file's, else that of the device it runs on.
jobfile::TrainingDtype ComputeDtype(const jobfile::JobSpec& spec);
int64_t BytesOf(jobfile::TrainingDtype dtype);

// A forward and backward pass over `rows` tokens on one rank. attention_scratch_bytes is the caller's to set.
StepShape StepShapeOf(const jobfile::JobSpec& spec, const trainer::ModelConfig& config,
                      const trainer::AdapterPlan& plan, int64_t rows);

ModelShape ModelShapeOf(const trainer::ModelConfig& config);

}  // namespace longspan::planner
