// What a step computes under a memory policy, and about how long that takes.
//
//   seconds = GEMM FLOPs / rate + attention FLOPs / rate + bytes of what only moves memory / rate
//             + host copies that the computation does not hide
//
// Pure. An estimate: kernels are taken to reach the profile's rates at any size, nothing overlaps but host copies, and
// the time that ranks wait for one another (the all-reduce, keys and values, shared weights, an uneven batch) is not in
// it. Of ranks that share a sequence the slowest counts.
#pragma once

#include <cstdint>

#include "worker/planner/memory_policy.h"
#include "worker/planner/planned_job.h"

namespace longspan::planner {

// Pairs of a token and a token that it attends to, itself among them, summed over the query heads of one sequence.
double AttendedPairs(const jobfile::AttentionSection& attention, int64_t tokens, int64_t group, int64_t query_heads);

// Of one direction of a pass, on one rank; of ranks that share a sequence, the average one.
struct Work {
  double gemm_flops = 0;
  double attention_flops = 0;  // only of pairs that attend
  double memory_bytes = 0;     // read and written beside the products: norms, activations, weights of each tile
  Work& operator+=(const Work& other);
  Work& operator*=(double factor);
};

struct PassWork {
  Work forward;   // with the loss and its gradient
  Work backward;  // with what is computed again
  double executed_flops() const;
};
PassWork WorkOfPass(const PlannedJob& job, const StepShape& shape, const MemoryPolicy& policy);

// Model FLOPs of a step over all ranks, as published tables count them (flops.h).
double ModelFlopsOfStep(const PlannedJob& job);

struct StepTime {
  double executed_flops = 0;  // of a step over all ranks, with what is computed again; causal masks halve attention
  double seconds = 0;         // of a step
  double seconds_gemm = 0, seconds_attention = 0, seconds_memory = 0, seconds_host = 0, seconds_optimizer = 0;
  double tokens_per_second = 0;  // of all ranks
};
// `host_traffic_bytes` of a pass, out and back.
StepTime TimeOfStep(const PlannedJob& job, const PassWork& pass, int64_t host_traffic_bytes, int64_t trained_values);

}  // namespace longspan::planner
