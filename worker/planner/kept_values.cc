#include "worker/planner/kept_values.h"

#include <algorithm>
#include <numeric>

namespace longspan::planner {
namespace {

int64_t Aligned(int64_t bytes) { return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

}  // namespace

int64_t KeptBytes::total() const { return std::accumulate(parts.begin(), parts.end(), int64_t{0}); }

KeptBytes KeptBytesOfLayer(const StepShape& shape, KeepPolicy keep) {
  KeptBytes bytes;
  const auto set = [&](KeptPart part, int64_t per_row) {
    bytes.parts[static_cast<size_t>(part)] = Aligned(shape.rows * per_row);
  };
  set(KeptPart::kInput, shape.hidden_size * shape.element_bytes);
  if (Keeps(keep, KeepPolicy::kAttentionOutput)) {
    set(KeptPart::kAttentionOutput, shape.query_size() * shape.element_bytes);
    set(KeptPart::kLogSumExp, shape.query_heads * 4);
  }
  if (Keeps(keep, KeepPolicy::kQueryKeyValue)) {
    set(KeptPart::kQueryKeyValue, shape.query_key_value_size() * shape.element_bytes);
  }
  if (Keeps(keep, KeepPolicy::kResidual) && !shape.parallel_residual) {
    set(KeptPart::kResidual, shape.hidden_size * shape.element_bytes);
  }
  if (Keeps(keep, KeepPolicy::kGateUp)) set(KeptPart::kGateUp, shape.mlp_in_size() * shape.element_bytes);
  return bytes;
}

KeptPlan PlanKeptValues(const StepShape& shape, const MemoryPolicy& policy) {
  KeptPlan plan;
  plan.checkpoint_every =
      std::clamp<int64_t>(policy.checkpoint_every, 1, std::max<int64_t>(1, shape.num_hidden_layers));
  plan.long_lived = (shape.num_hidden_layers + plan.checkpoint_every - 1) / plan.checkpoint_every;
  const bool segments = plan.checkpoint_every > 1;
  plan.long_lived_bytes = KeptBytesOfLayer(shape, segments ? KeepPolicy::kInput : policy.keep);
  if (segments) {
    plan.segment = plan.checkpoint_every;
    plan.segment_bytes = KeptBytesOfLayer(shape, policy.keep);
  }
  plan.host = std::clamp<int64_t>(policy.host_layers, 0, std::max<int64_t>(0, plan.long_lived - kDeviceEntriesMin));
  return plan;
}

KeptTotals KeptValuesOf(const KeptPlan& plan) {
  KeptTotals totals;
  const int64_t entry = plan.long_lived_bytes.total();
  totals.device_bytes = (plan.long_lived - plan.host) * entry;
  if (plan.segment > 0) {
    // The first layer of a segment reads its checkpoint.
    totals.device_bytes +=
        plan.segment * plan.segment_bytes.total() - plan.segment_bytes.parts[static_cast<size_t>(KeptPart::kInput)];
  }
  totals.host_bytes = plan.host * entry;
  totals.host_traffic_bytes = 2 * totals.host_bytes;
  return totals;
}

}  // namespace longspan::planner
