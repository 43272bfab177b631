// The linear layers of a base model as the q-methods quantize them: every one that can carry LoRA. Embedding and head
// stay as they are.
#pragma once

#include "worker/model_config/adapter_plan.h"
#include "worker/trainer/model/base_tensors.h"
#include "worker/trainer/quantized/quantized_base.h"

namespace longspan::trainer {

// `base` must outlive the result.
QuantizeSource QuantizeSourceOf(const ModelConfig& config, const AdaptableModel& model, const BaseTensors& base);

}  // namespace longspan::trainer
