#include "worker/trainer/model/base_tensors.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>

namespace longspan::trainer {
namespace {

std::string ShapeText(at::IntArrayRef shape) {
  return fmt::format("[{}]", fmt::join(shape.begin(), shape.end(), ", "));
}

class StoredTensors : public BaseTensors {
 public:
  explicit StoredTensors(WeightFolder folder) : folder_(std::move(folder)) {}
  at::Tensor Read(const std::string& name) const override { return folder_.View(name); }
  at::ScalarType ExportDtype(const std::string& name) const override { return folder_.entry(name).dtype; }
  void LetGo(const std::string& name) const override { folder_.LetGo(name); }
  std::vector<std::string> paths() const override { return folder_.paths(); }

 private:
  WeightFolder folder_;
};

class DrawnTensors : public BaseTensors {
 public:
  DrawnTensors(const ModelConfig& config, int64_t seed)
      : seed_(seed), standard_deviation_(config.initializer_range), export_dtype_(config.dtype) {
    for (TensorShape& tensor : BaseTensorShapes(config)) shapes_[tensor.name] = std::move(tensor.shape);
  }
  at::Tensor Read(const std::string& name) const override {
    const std::vector<int64_t>& shape = shapes_.at(name);
    if (shape.size() == 1) return at::ones(shape, at::kFloat);
    return at::empty(shape, at::kFloat).normal_(0, standard_deviation_, NamedGenerator(seed_, name));
  }
  at::ScalarType ExportDtype(const std::string&) const override { return export_dtype_; }

 private:
  int64_t seed_;
  double standard_deviation_;
  at::ScalarType export_dtype_;
  std::map<std::string, std::vector<int64_t>> shapes_;
};

}  // namespace

std::vector<TensorShape> BaseTensorShapes(const ModelConfig& config) {
  const int64_t d = config.hidden_size;
  const int64_t f = config.intermediate_size;
  const int64_t query_size = config.num_attention_heads * config.head_dim;
  const int64_t key_value_size = config.num_key_value_heads * config.head_dim;
  std::vector<TensorShape> tensors = {{"model.embed_tokens.weight", {config.vocab_size, d}}};
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    tensors.push_back({prefix + "input_layernorm.weight", {d}});
    tensors.push_back({prefix + "self_attn.q_proj.weight", {query_size, d}});
    tensors.push_back({prefix + "self_attn.k_proj.weight", {key_value_size, d}});
    tensors.push_back({prefix + "self_attn.v_proj.weight", {key_value_size, d}});
    tensors.push_back({prefix + "self_attn.o_proj.weight", {d, query_size}});
    tensors.push_back({prefix + "post_attention_layernorm.weight", {d}});
    tensors.push_back({prefix + "mlp.gate_proj.weight", {f, d}});
    tensors.push_back({prefix + "mlp.up_proj.weight", {f, d}});
    tensors.push_back({prefix + "mlp.down_proj.weight", {d, f}});
  }
  tensors.push_back({"model.norm.weight", {d}});
  if (!config.tie_word_embeddings) tensors.push_back({"lm_head.weight", {config.vocab_size, d}});
  return tensors;
}

void CheckStoredShape(const std::string& file, const std::string& name, at::IntArrayRef stored,
                      at::IntArrayRef expected) {
  if (stored == expected) return;
  throw UserError(fmt::format("cannot load {}: tensor \"{}\" has shape {}, but config.json asks for {}", file, name,
                              ShapeText(stored), ShapeText(expected)));
}

std::unique_ptr<BaseTensors> OpenBaseTensors(const ModelConfig& config, const std::string& folder) {
  WeightFolder weights = WeightFolder::Open(folder);
  for (const TensorShape& tensor : BaseTensorShapes(config)) {
    const SafetensorsFile::Entry& entry = weights.entry(tensor.name);
    const std::string& file = weights.path_of(tensor.name);
    CheckStoredShape(file, tensor.name, entry.shape, tensor.shape);
    if (entry.dtype != at::kFloat && entry.dtype != at::kHalf && entry.dtype != at::kBFloat16) {
      throw UserError(fmt::format("cannot load {}: tensor \"{}\" has dtype {}; weights must be F32, F16 or BF16", file,
                                  tensor.name, c10::toString(entry.dtype)));
    }
  }
  return std::make_unique<StoredTensors>(std::move(weights));
}

std::unique_ptr<BaseTensors> RandomBaseTensors(const ModelConfig& config, int64_t seed) {
  return std::make_unique<DrawnTensors>(config, seed);
}

at::Generator NamedGenerator(int64_t seed, const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325u ^ (static_cast<uint64_t>(seed) * 0x9e3779b97f4a7c15u);  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return at::detail::createCPUGenerator(hash);
}

}  // namespace longspan::trainer
