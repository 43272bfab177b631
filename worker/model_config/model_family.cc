#include "worker/model_config/model_family.h"

namespace longspan::trainer {
namespace {

// What Llama, and the families that came after it, call their tensors.
ModelFamily NamedLikeLlama(const std::string& architecture, const std::string& model_type) {
  ModelFamily family;
  family.architecture = architecture;
  family.model_type = model_type;
  family.embedding = "model.embed_tokens";
  family.layers = "model.layers";
  family.final_norm = "model.norm";
  family.head = "lm_head";
  family.input_norm = "input_layernorm";
  family.post_attention_norm = "post_attention_layernorm";
  family.query_key_value = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
  family.output = "self_attn.o_proj";
  family.mlp_in = {"mlp.gate_proj", "mlp.up_proj"};
  family.mlp_out = "mlp.down_proj";
  family.default_targets = {"q_proj", "k_proj", "v_proj", "o_proj"};
  return family;
}

ModelFamily Llama() {
  ModelFamily family = NamedLikeLlama("LlamaForCausalLM", "llama");
  family.query_key_value_bias = family.output_bias = family.mlp_bias = BiasRule::kIfAsked;
  family.key_value_heads_are_heads = true;
  family.max_position_embeddings = 2048;
  return family;
}

ModelFamily Mistral() {
  ModelFamily family = NamedLikeLlama("MistralForCausalLM", "mistral");
  family.window = WindowRule::kEveryLayer;
  family.max_position_embeddings = 131072;
  return family;
}

ModelFamily Qwen2() {
  ModelFamily family = NamedLikeLlama("Qwen2ForCausalLM", "qwen2");
  family.window = WindowRule::kUpperLayers;
  family.query_key_value_bias = BiasRule::kAlways;
  family.max_position_embeddings = 32768;
  return family;
}

ModelFamily Qwen3() {
  ModelFamily family = NamedLikeLlama("Qwen3ForCausalLM", "qwen3");
  family.query_norm = "self_attn.q_norm";
  family.key_norm = "self_attn.k_norm";
  family.query_key_value_bias = family.output_bias = BiasRule::kIfAsked;
  family.window = WindowRule::kUpperLayers;
  family.head_dim = 128;
  family.max_position_embeddings = 32768;
  return family;
}

ModelFamily GptNeoX() {
  ModelFamily family;
  family.architecture = "GPTNeoXForCausalLM";
  family.model_type = "gpt_neox";
  family.embedding = "gpt_neox.embed_in";
  family.layers = "gpt_neox.layers";
  family.final_norm = "gpt_neox.final_layer_norm";
  family.head = "embed_out";
  family.head_alias = "lm_head";  // of the module since transformers 5
  family.input_norm = "input_layernorm";
  family.post_attention_norm = "post_attention_layernorm";
  family.query_key_value = {"attention.query_key_value"};
  family.output = "attention.dense";
  family.mlp_in = {"mlp.dense_h_to_4h"};
  family.mlp_out = "mlp.dense_4h_to_h";
  family.norm = NormKind::kLayer;
  family.may_be_parallel = true;
  family.may_tie = false;
  family.query_key_value_bias = family.output_bias = BiasRule::kUnlessRefused;
  family.mlp_bias = BiasRule::kAlways;
  family.default_targets = {"query_key_value", "dense"};
  family.norm_epsilon_key = "layer_norm_eps";
  family.rope_keys = {"rotary_emb_base", "rotary_pct", 10000, 0.25};
  family.may_turn_a_part = true;
  family.norm_epsilon = 1e-5;
  family.key_value_heads_are_heads = true;
  family.max_position_embeddings = 2048;
  return family;
}

const ModelFamily* Find(std::string ModelFamily::* key, const std::string& value) {
  for (const ModelFamily& family : ModelFamilies()) {
    if (family.*key == value) return &family;
  }
  return nullptr;
}

}  // namespace

std::vector<std::string> ModelFamily::LinearPaths() const {
  std::vector<std::string> paths = query_key_value;
  paths.push_back(output);
  paths.insert(paths.end(), mlp_in.begin(), mlp_in.end());
  paths.push_back(mlp_out);
  return paths;
}

std::string LastName(const std::string& module) { return module.substr(module.rfind('.') + 1); }

const std::vector<ModelFamily>& ModelFamilies() {
  static const std::vector<ModelFamily> kFamilies = {Llama(), Mistral(), Qwen2(), Qwen3(), GptNeoX()};
  return kFamilies;
}

const ModelFamily* FindFamilyByArchitecture(const std::string& architecture) {
  return Find(&ModelFamily::architecture, architecture);
}

const ModelFamily* FindFamilyByModelType(const std::string& model_type) {
  return Find(&ModelFamily::model_type, model_type);
}

std::string KnownArchitectures() {
  std::string names;
  for (const ModelFamily& family : ModelFamilies()) names += (names.empty() ? "" : ", ") + family.architecture;
  return names;
}

}  // namespace longspan::trainer
