#include "worker/model_config/tensor_names.h"

#include <fmt/format.h>

#include <array>
#include <map>

namespace longspan::trainer {

std::string EmbeddingName(const ModelConfig& config) { return config.family->embedding + ".weight"; }
std::string HeadName(const ModelConfig& config) { return config.family->head + ".weight"; }

std::string NameInLayer(const ModelConfig& config, size_t layer, const std::string& module) {
  return fmt::format("{}.{}.{}", config.family->layers, layer, module);
}

std::vector<TensorShape> BaseTensorShapes(const ModelConfig& config) {
  const ModelFamily& family = *config.family;
  const int64_t d = config.hidden_size;
  const int64_t f = config.intermediate_size;
  const int64_t query_size = config.num_attention_heads * config.head_dim;
  const int64_t key_value_size = config.num_key_value_heads * config.head_dim;
  std::vector<TensorShape> tensors = {{family.embedding + ".weight", {config.vocab_size, d}}};
  const auto add_norm = [&](const std::string& module, int64_t size) {
    tensors.push_back({module + ".weight", {size}});
    if (family.norm == NormKind::kLayer) tensors.push_back({module + ".bias", {size}});
  };
  const auto add_linear = [&](const std::string& module, int64_t outputs, int64_t inputs, bool bias) {
    tensors.push_back({module + ".weight", {outputs, inputs}});
    if (bias) tensors.push_back({module + ".bias", {outputs}});
  };
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = fmt::format("{}.{}.", family.layers, layer);
    add_norm(prefix + family.input_norm, d);
    if (family.fuses_query_key_value()) {
      add_linear(prefix + family.query_key_value[0], 3 * query_size, d, config.biases.query_key_value);
    } else {
      add_linear(prefix + family.query_key_value[0], query_size, d, config.biases.query_key_value);
      add_linear(prefix + family.query_key_value[1], key_value_size, d, config.biases.query_key_value);
      add_linear(prefix + family.query_key_value[2], key_value_size, d, config.biases.query_key_value);
    }
    if (family.has_head_norms()) {
      add_norm(prefix + family.query_norm, config.head_dim);
      add_norm(prefix + family.key_norm, config.head_dim);
    }
    add_linear(prefix + family.output, d, query_size, config.biases.output);
    add_norm(prefix + family.post_attention_norm, d);
    for (const std::string& module : family.mlp_in) add_linear(prefix + module, f, d, config.biases.mlp);
    add_linear(prefix + family.mlp_out, d, f, config.biases.mlp);
  }
  add_norm(family.final_norm, d);
  if (!config.tie_word_embeddings) tensors.push_back({family.head + ".weight", {config.vocab_size, d}});
  return tensors;
}

AdaptableModel AdaptableModelOf(const ModelConfig& config) {
  AdaptableModel model;
  model.default_targets = config.family->default_targets;
  model.tied_embeddings = config.tie_word_embeddings;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (const std::string& module : config.family->LinearPaths()) {
      model.linear_names.push_back(NameInLayer(config, static_cast<size_t>(layer), module));
    }
  }
  std::map<std::string, std::array<int64_t, 2>> sizes;
  for (const TensorShape& tensor : BaseTensorShapes(config)) {
    if (tensor.shape.size() == 2) sizes[tensor.name] = {tensor.shape[0], tensor.shape[1]};
  }
  for (const std::string& name : model.linear_names) model.linear_sizes.push_back(sizes.at(name + ".weight"));
  return model;
}

}  // namespace longspan::trainer
