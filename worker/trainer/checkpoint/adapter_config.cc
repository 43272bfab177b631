#include "worker/trainer/checkpoint/adapter_config.h"

#include <set>

namespace longspan::trainer {
namespace {

const std::string kEmbedding = "base_model.model.model.embed_tokens.weight";
const std::string kHead = "base_model.model.lm_head.weight";

// "base_model.model.model.layers.0.input_layernorm.weight" -> "input_layernorm"
std::string LastModuleName(const std::string& name) {
  const size_t end = name.rfind('.');
  const size_t begin = name.rfind('.', end - 1);
  return name.substr(begin + 1, end - begin - 1);
}

}  // namespace

nlohmann::json AdapterConfigDocument(const AdapterDescription& adapter) {
  nlohmann::json document = {
      {"peft_type", "LORA"},
      {"task_type", "CAUSAL_LM"},
      {"base_model_name_or_path", adapter.base_model},
      {"inference_mode", true},
      {"r", adapter.rank},
      {"lora_alpha", adapter.alpha},
      {"lora_dropout", adapter.dropout},
      {"target_modules", adapter.targets},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"init_lora_weights", true},
      {"use_rslora", adapter.rslora},
      {"rank_pattern", adapter.rank_pattern},
      {"alpha_pattern", adapter.alpha_pattern},
      {"use_dora", false},
  };
  document["modules_to_save"] =
      adapter.modules_to_save.empty() ? nlohmann::json(nullptr) : nlohmann::json(adapter.modules_to_save);
  return document;
}

std::vector<std::string> ModulesToSave(const std::vector<Trainable>& trainables, bool tied) {
  std::set<std::string> names;
  for (const Trainable& trainable : trainables) {
    if (!trainable.is_lora) names.insert(LastModuleName(trainable.name));
  }
  if (tied && names.count("embed_tokens") != 0) names.insert("lm_head");
  return {names.begin(), names.end()};
}

std::vector<NamedTensor> SavedTensors(const std::vector<Trainable>& trainables, bool tied) {
  std::vector<NamedTensor> tensors;
  for (const Trainable& trainable : trainables) {
    tensors.emplace_back(trainable.name, trainable.value);
    if (tied && trainable.name == kEmbedding) tensors.emplace_back(kHead, trainable.value);
  }
  return tensors;
}

}  // namespace longspan::trainer
