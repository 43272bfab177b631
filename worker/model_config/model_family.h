// The model families that the trainer knows, one table entry each: what a family fixes, whatever its config.json says —
// the names of its tensors, which linear layers are stored as one, what has a bias, which keys mean what. What differs
// between models of one family is in ModelConfig.
//
// The tensors of a module are MODULE.weight and, where it has one, MODULE.bias. Modules of a layer are named from the
// layer: LAYERS.<n>.MODULE. Read-only tables; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/model_config/rope_scaling.h"

namespace longspan::trainer {

// Where a linear layer gets a bias from. kIfAsked and kUnlessRefused read a key of config.json, false or true when
// absent.
enum class BiasRule { kNever, kAlways, kIfAsked, kUnlessRefused };

// Which layers attend within a sliding window. kEveryLayer: key sliding_window. kUpperLayers: with use_sliding_window,
// those that layer_types names, or from max_window_layers on.
enum class WindowRule { kNone, kEveryLayer, kUpperLayers };

enum class NormKind { kRms, kLayer };  // norm.h

// mlp_activation.h
enum class Activation { kGatedSilu, kGelu, kGeluTanh };

struct ModelFamily {
  std::string architecture;  // "LlamaForCausalLM"
  std::string model_type;    // "llama"

  std::string embedding;   // "model.embed_tokens"
  std::string layers;      // "model.layers"
  std::string final_norm;  // "model.norm"
  std::string head;        // "lm_head"
  std::string head_alias;  // what some files call it instead; empty: none

  // Modules of a layer.
  std::string input_norm, post_attention_norm;
  std::vector<std::string> query_key_value;  // q, k and v, or one layer whose rows are [head][q, k, v][head size]
  std::string query_norm, key_norm;          // of each head, before RoPE; empty: none
  std::string output;
  std::vector<std::string> mlp_in;  // gate and up, or one layer without a gate
  std::string mlp_out;

  NormKind norm = NormKind::kRms;
  bool may_be_parallel = false;  // key use_parallel_residual, true when absent: attention and MLP read the same input
  bool may_tie = true;           // the head to the embedding
  BiasRule query_key_value_bias = BiasRule::kNever;  // key attention_bias
  BiasRule output_bias = BiasRule::kNever;           // likewise
  BiasRule mlp_bias = BiasRule::kNever;              // key mlp_bias

  WindowRule window = WindowRule::kNone;

  std::vector<std::string> default_targets;  // of LoRA: the projections of attention

  // Keys of config.json that differ between families.
  std::string norm_epsilon_key = "rms_norm_eps";
  RopeKeys rope_keys;
  bool may_turn_a_part = false;  // RoPE, of a head

  // What transformers takes where config.json says nothing.
  double norm_epsilon = 1e-6;
  bool key_value_heads_are_heads = false;  // else num_key_value_heads must be there
  int64_t head_dim = 0;                    // 0: hidden_size over num_attention_heads
  int64_t max_position_embeddings = 0;

  bool fuses_query_key_value() const { return query_key_value.size() == 1; }
  bool has_gate() const { return mlp_in.size() == 2; }
  bool has_head_norms() const { return !query_norm.empty(); }
  // The linear layers in the order of the layer: "self_attn.q_proj".
  std::vector<std::string> LinearPaths() const;
};

// The last part of a module's name: "self_attn.q_proj" -> "q_proj".
std::string LastName(const std::string& module);

const std::vector<ModelFamily>& ModelFamilies();
// Null when unknown.
const ModelFamily* FindFamilyByArchitecture(const std::string& architecture);
const ModelFamily* FindFamilyByModelType(const std::string& model_type);
// "LlamaForCausalLM, Qwen2ForCausalLM", for messages.
std::string KnownArchitectures();

}  // namespace longspan::trainer
