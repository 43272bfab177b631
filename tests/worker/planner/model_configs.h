// Models of the planner's tests, as config.json would have them.
#pragma once

#include <nlohmann/json.hpp>

#include "worker/model_config/model_config.h"
#include "worker/model_config/tensor_names.h"
#include "worker/planner/planned_job.h"

namespace longspan::planner {

inline nlohmann::json Llama2_7B() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"hidden_size", 4096},
          {"intermediate_size", 11008},
          {"num_hidden_layers", 32},
          {"num_attention_heads", 32},
          {"num_key_value_heads", 32},
          {"vocab_size", 32000},
          {"rms_norm_eps", 1e-5},
          {"max_position_embeddings", 4096}};
}

// With grouped queries, biases of q, k and v, and a tied head.
inline nlohmann::json TinyQwen() {
  return {{"architectures", {"Qwen2ForCausalLM"}},
          {"hidden_size", 64},
          {"intermediate_size", 96},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"vocab_size", 100},
          {"rms_norm_eps", 1e-6},
          {"tie_word_embeddings", true},
          {"max_position_embeddings", 256}};
}

inline PlannedJob JobOf(const nlohmann::json& config_document, const jobfile::JobSpec& spec,
                        const DeviceProfile& device = CpuProfile(1), const MemoryLimits& limits = {}) {
  const trainer::ModelConfig config = trainer::ParseModelConfig(config_document, "config.json");
  return PlannedJobOf(spec, config, trainer::ResolveAdapterPlan(spec, trainer::AdaptableModelOf(config)), device,
                      limits);
}

}  // namespace longspan::planner
