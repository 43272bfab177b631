// The planner over a model folder and the slots that workers have registered: what PlanJob answers, and what a submit
// is held against.
//
// Reads config.json (and adapter_config.json where a job starts from an adapter) on this machine: on a background
// thread, please. Nothing outside of the roots is read. Thread-safe.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "longspan/v1/training_service.pb.h"
#include "proto/jobfile/job_spec.h"
#include "server/core/core.h"

namespace longspan::rpc {

class FitCache;

// One of the slots that have the same device and memory.
struct SlotMemory {
  std::string worker_id;
  int64_t index = 0;
  std::string device;
  int64_t memory_bytes = 0;  // 0: not known
};

// The kinds of slots in the cluster, also of workers that are down at the moment: GPUs first, the largest first; at
// most 16.
std::vector<SlotMemory> SlotsToPlanFor(const std::vector<core::SlotKind>& slot_kinds);

// `spec` is checked already. FAILED_PRECONDITION where this machine does not see the model's folder, INVALID_ARGUMENT
// where the job does not go with it.
grpc::Status AnswerPlan(const v1::PlanJobRequest& request, const jobfile::JobSpec& spec,
                        const std::vector<std::filesystem::path>& roots, const std::vector<SlotMemory>& slots,
                        v1::PlanJobResponse* response);

struct FitCheck {
  // INVALID_ARGUMENT, with the numbers and what would fit, for a job that fits into no slot. OK where it does, where a
  // slot's memory is not known or none is registered, where this machine does not see the model, and for kind evaluate.
  grpc::Status status;
  // What a slot must have for a rank of the smallest gang: no kind of slot that has it is too small, where one number
  // can tell them apart. 0 where nobody can tell.
  int64_t memory_bytes_min = 0;
};
// `cache` may be null.
FitCheck CheckFits(const jobfile::JobSpec& spec, const std::vector<std::filesystem::path>& roots,
                   const std::vector<SlotMemory>& slots, FitCache* cache);

}  // namespace longspan::rpc
