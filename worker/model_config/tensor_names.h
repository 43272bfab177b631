// The tensors of a model under their Hugging Face names, with their shapes, as config.json has them.
//
// Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "worker/model_config/adapter_plan.h"
#include "worker/model_config/model_config.h"

namespace longspan::trainer {

struct TensorShape {
  std::string name;
  std::vector<int64_t> shape;
};

// Every tensor of the model, in the order of the model. A tied lm_head is not among them.
std::vector<TensorShape> BaseTensorShapes(const ModelConfig& config);

std::string EmbeddingName(const ModelConfig& config);  // "model.embed_tokens.weight"
std::string HeadName(const ModelConfig& config);       // "lm_head.weight"
// "self_attn.q_proj" of a layer -> "model.layers.0.self_attn.q_proj"
std::string NameInLayer(const ModelConfig& config, size_t layer, const std::string& module);

// What a plan of LoRA needs to know of the model.
AdaptableModel AdaptableModelOf(const ModelConfig& config);

}  // namespace longspan::trainer
