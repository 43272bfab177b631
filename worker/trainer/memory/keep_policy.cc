#include "worker/trainer/memory/keep_policy.h"

namespace longspan::trainer {

int64_t KeptElementsPerToken(KeepPolicy policy, const LayerSizes& sizes) {
  int64_t elements = sizes.hidden_size;
  if (Keeps(policy, KeepPolicy::kAttentionOutput)) elements += sizes.query_heads * sizes.head_dim;
  if (Keeps(policy, KeepPolicy::kQueryKeyValue))
    elements += (sizes.query_heads + 2 * sizes.key_value_heads) * sizes.head_dim;
  if (Keeps(policy, KeepPolicy::kResidual) && !sizes.parallel_residual) elements += sizes.hidden_size;
  if (Keeps(policy, KeepPolicy::kGateUp)) elements += (sizes.has_gate ? 2 : 1) * sizes.intermediate_size;
  return elements;
}

}  // namespace longspan::trainer
