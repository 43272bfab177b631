// Tiny random model folders, Llama unless asked otherwise, and small conveniences for the tests of the trainer.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "worker/trainer/model/base_tensors.h"
#include "worker/trainer/model/causal_lm.h"

namespace longspan::trainer::testing {

// A folder that goes away with its owner.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "longspan-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder");
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct TinyShape {
  int64_t hidden = 24, heads = 4, key_value_heads = 2, layers = 2, intermediate = 40, vocab = 61, max_position = 32;
  bool tied = false;
  nlohmann::json changes = nlohmann::json::object();  // keys of config.json that differ: another family, biases
};

inline nlohmann::json TinyConfig(const TinyShape& shape) {
  nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                           {"model_type", "llama"},
                           {"hidden_size", shape.hidden},
                           {"intermediate_size", shape.intermediate},
                           {"num_hidden_layers", shape.layers},
                           {"num_attention_heads", shape.heads},
                           {"num_key_value_heads", shape.key_value_heads},
                           {"head_dim", 6},
                           {"vocab_size", shape.vocab},
                           {"max_position_embeddings", shape.max_position},
                           {"rms_norm_eps", 1e-5},
                           {"tie_word_embeddings", shape.tied},
                           {"hidden_act", "silu"},
                           {"rope_theta", 10000.0},
                           {"dtype", "float32"}};
  config.update(shape.changes);
  return config;
}

inline void WriteJson(const std::string& path, const nlohmann::json& document) {
  std::ofstream(path) << document.dump(2);
}

// Weights far from their usual small start: attention is not flat and norms are not one.
inline std::vector<NamedTensor> TinyTensors(const TinyShape& shape, int64_t seed = 7) {
  const ModelConfig config = ParseModelConfig(TinyConfig(shape), "tiny");
  std::vector<NamedTensor> tensors;
  for (const TensorShape& tensor : BaseTensorShapes(config)) {
    const bool is_norm = tensor.shape.size() == 1 && !tensor.name.ends_with(".bias");
    tensors.emplace_back(tensor.name,
                         at::empty(tensor.shape, at::kFloat)
                             .normal_(is_norm ? 1.0 : 0.0, is_norm ? 0.2 : 0.3, NamedGenerator(seed, tensor.name)));
  }
  return tensors;
}

inline void WriteTinyModel(const std::string& folder, const TinyShape& shape) {
  WriteJson(folder + "/config.json", TinyConfig(shape));
  WriteSafetensors(folder + "/model.safetensors", TinyTensors(shape));
}

inline jobfile::JobSpec TinySpec(const std::string& folder, int64_t context_length) {
  jobfile::JobSpec spec;
  spec.name = "tiny";
  spec.model.path = folder;
  spec.context_length = context_length;
  spec.attention.group_size = 8;
  spec.method.rank = 3;
  spec.training.seed = 11;
  return spec;
}

inline at::Tensor RandomIds(int64_t sequences, int64_t tokens, int64_t vocab, int64_t seed = 3) {
  return at::empty({sequences, tokens}, at::kLong).random_(0, vocab, NamedGenerator(seed, "ids"));
}

// B starts at zero, where the gradient of A is zero too: draws every LoRA value anew.
inline void DrawLora(CausalLm* model) {
  for (Trainable& trainable : model->trainables()) {
    if (trainable.is_lora) trainable.value.normal_(0, 0.2, NamedGenerator(5, trainable.name));
  }
  model->ValuesChanged();
}

// max|a - b| / max|b|.
inline double RelativeError(const at::Tensor& actual, const at::Tensor& expected) {
  const double difference = (actual - expected).abs().max().item<double>();
  const double largest = expected.abs().max().item<double>();
  return largest == 0 ? (difference == 0 ? 0.0 : 1e30) : difference / largest;
}

}  // namespace longspan::trainer::testing
