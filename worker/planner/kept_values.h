// The values that a layer's backward pass finds there because the forward pass left them: sizes of each part, and how
// many layers hold them at once under a memory policy.
//
// Pure. Legend as in step_buffers.h.
#pragma once

#include <array>
#include <cstdint>

#include "worker/planner/memory_policy.h"
#include "worker/planner/step_buffers.h"

namespace longspan::planner {

enum class KeptPart : int {
  kInput,            // (N, d)
  kAttentionOutput,  // (N, Hq·D)
  kLogSumExp,        // (N, Hq) fp32
  kQueryKeyValue,    // (N, (Hq + 2·Hkv)·D)
  kResidual,         // (N, d)
  kGateUp,           // (N, 2F) or (N, F)
  kCount
};
inline constexpr int kKeptPartCount = static_cast<int>(KeptPart::kCount);

// Bytes of each part of one layer, each rounded up to kArenaAlignment; 0: not kept.
struct KeptBytes {
  std::array<int64_t, kKeptPartCount> parts{};
  int64_t total() const;
};
KeptBytes KeptBytesOfLayer(const StepShape& shape, KeepPolicy keep);

// Where the layers of a pass keep their values.
//
//   long-lived   what outlasts the forward pass: with checkpoint_every 1 everything of every layer; above, the inputs
//   of
//                the checkpoints
//   segment      with checkpoint_every above 1: everything of one segment, reused for the next. The input of its first
//                layer is the checkpoint
//
// Of the long-lived entries the first `host` leave for host memory once they are written and come back before they are
// read. The buffers that they pass through are those of the last entries that stay, so at least two stay.
inline constexpr int64_t kDeviceEntriesMin = 2;
struct KeptPlan {
  int64_t checkpoint_every = 1;
  int64_t long_lived = 0;                     // entries: layers, or checkpoints
  int64_t host = 0;                           // of them, in host memory
  int64_t segment = 0;                        // entries; 0 with checkpoint_every 1
  KeptBytes long_lived_bytes, segment_bytes;  // of one entry
};
KeptPlan PlanKeptValues(const StepShape& shape, const MemoryPolicy& policy);

struct KeptTotals {
  int64_t device_bytes = 0;
  int64_t host_bytes = 0;
  int64_t host_traffic_bytes = 0;  // copied out and back in, per pass
};
KeptTotals KeptValuesOf(const KeptPlan& plan);

}  // namespace longspan::planner
