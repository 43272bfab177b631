#include "worker/trainer/model/model_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "worker/trainer/adapters/adapter_folder.h"

namespace longspan::trainer {
namespace {

const std::string kPeftPrefix = "base_model.model.";
const std::string kEmbeddingName = "model.embed_tokens.weight";
const std::string kHeadName = "lm_head.weight";
const std::string kFinalNormName = "model.norm.weight";

std::string LayerPrefix(size_t layer) { return fmt::format("model.layers.{}.", layer); }

// "model.layers.0.self_attn.q_proj" of a module of a layer.
std::string ModuleName(size_t layer, const std::string& module) {
  const bool in_mlp = module == "gate_proj" || module == "up_proj" || module == "down_proj";
  return LayerPrefix(layer) + (in_mlp ? "mlp." : "self_attn.") + module;
}

// The tensors of an adapter folder, each of which somebody must take: one left over means that the folder is for
// another model.
class AdapterTensors {
 public:
  explicit AdapterTensors(const std::string& folder) {
    if (folder.empty()) return;
    file_ = OpenAdapterWeights(folder);
    for (const auto& [name, entry] : file_->entries()) left_.insert(name);
  }
  bool present() const { return file_.has_value(); }
  bool Has(const std::string& hugging_face_name) const { return file_ && file_->Has(kPeftPrefix + hugging_face_name); }

  at::Tensor Take(const std::string& hugging_face_name, at::IntArrayRef shape) {
    const std::string name = kPeftPrefix + hugging_face_name;
    const at::Tensor value = file_->View(name);
    CheckStoredShape(file_->path(), name, value.sizes(), shape);
    if (!value.is_floating_point())
      throw UserError("cannot load " + file_->path() + ": tensor \"" + name + "\" holds integers");
    left_.erase(name);
    return value;
  }
  void CheckAllTaken() const {
    if (left_.empty()) return;
    throw UserError(fmt::format(
        "cannot load {}: tensor \"{}\" ({} such) belongs to no module of the model that adapter_config.json targets",
        file_->path(), *left_.begin(), left_.size()));
  }
  // With tied embeddings the file has the one tensor under two names; PEFT keeps an old head otherwise.
  void CheckTied(const ModelConfig& config) {
    if (!file_ || !config.tie_word_embeddings || Has(kEmbeddingName) == false) {
      if (file_ && config.tie_word_embeddings && Has(kHeadName)) FailTied("lacks embed_tokens beside lm_head");
      return;
    }
    if (!Has(kHeadName)) FailTied("lacks lm_head beside embed_tokens");
    const std::vector<int64_t> shape = {config.vocab_size, config.hidden_size};
    const at::Tensor head = Take(kHeadName, shape);
    if (!at::equal(head, file_->View(kPeftPrefix + kEmbeddingName)))
      FailTied("has an lm_head that differs from embed_tokens");
  }

 private:
  [[noreturn]] void FailTied(const char* what) const {
    throw UserError("cannot load " + file_->path() + ": the model ties its embeddings, but the adapter " + what);
  }

  std::optional<SafetensorsFile> file_;
  std::set<std::string> left_;
};

class Loader {
 public:
  Loader(const ModelConfig& config, const BaseTensors& base, const AdapterPlan& plan, const WeightOptions& options)
      : config_(config), base_(base), plan_(plan), options_(options), adapter_(options.adapter_folder) {}

  ModelWeights Load() {
    adapter_.CheckTied(config_);
    weights_.embedding.value = LoadReplaceable(kEmbeddingName, {config_.vocab_size, config_.hidden_size});
    for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) LoadLayer(static_cast<size_t>(layer));
    weights_.final_norm.value = LoadReplaceable(kFinalNormName, {config_.hidden_size});
    weights_.head.value = config_.tie_word_embeddings
                              ? weights_.embedding.value
                              : LoadReplaceable(kHeadName, {config_.vocab_size, config_.hidden_size});
    if (adapter_.present()) adapter_.CheckAllTaken();
    return std::move(weights_);
  }

 private:
  // A copy of our own in the compute dtype: nothing points into a file that may change.
  at::Tensor Owned(const at::Tensor& stored) const {
    return stored.to(options_.dtype, /*non_blocking=*/false, /*copy=*/true);
  }

  at::Tensor LoadReplaceable(const std::string& name, at::IntArrayRef shape) {
    if (!adapter_.Has(name)) return Owned(base_.Read(name));
    weights_.replaced.push_back(name);
    return Owned(adapter_.Take(name, shape));
  }

  void LoadLayer(size_t layer) {
    LayerWeights& weights = weights_.layers.emplace_back();
    weights.input_norm.value = LoadReplaceable(LayerPrefix(layer) + "input_layernorm.weight", {config_.hidden_size});
    weights.query_key_value = LoadLinear(layer, {"q_proj", "k_proj", "v_proj"});
    weights.output = LoadLinear(layer, {"o_proj"});
    weights.post_attention_norm.value =
        LoadReplaceable(LayerPrefix(layer) + "post_attention_layernorm.weight", {config_.hidden_size});
    weights.gate_up = LoadLinear(layer, {"gate_proj", "up_proj"});
    weights.down = LoadLinear(layer, {"down_proj"});
  }

  FusedLinear LoadLinear(size_t layer, const std::vector<std::string>& modules) {
    FusedLinear linear;
    linear.dtype = options_.dtype;
    std::vector<at::Tensor> stored;
    int64_t outputs = 0;
    for (const std::string& module : modules) {
      stored.push_back(base_.Read(ModuleName(layer, module) + ".weight"));
      outputs += stored.back().size(0);
    }
    const int64_t inputs = stored[0].size(1);
    if (options_.quantized == nullptr) linear.weight = at::empty({outputs, inputs}, options_.dtype);
    int64_t first = 0;
    for (size_t index = 0; index < modules.size(); ++index) {
      LinearPart part;
      part.module = modules[index];
      const auto& known = AdaptableModules();
      part.module_index = std::find(known.begin(), known.end(), part.module) - known.begin();
      part.first_output = first;
      part.outputs = stored[index].size(0);
      if (options_.quantized == nullptr) {
        linear.weight.narrow(0, first, part.outputs).copy_(stored[index]);
      } else {
        part.quantized = std::move(options_.quantized->at(ModuleName(layer, part.module)));
      }
      if (plan_.Targets(part.module)) part.lora = LoadLora(layer, part, inputs);
      first += part.outputs;
      linear.parts.push_back(std::move(part));
    }
    linear.Refresh();
    return linear;
  }

  LoraFactors LoadLora(size_t layer, const LinearPart& part, int64_t inputs) {
    const std::string a_name = ModuleName(layer, part.module) + ".lora_A.weight";
    const std::string b_name = ModuleName(layer, part.module) + ".lora_B.weight";
    const int64_t rank = plan_.RankOf(ModuleName(layer, part.module));
    LoraFactors lora;
    lora.scale = plan_.ScaleOf(ModuleName(layer, part.module));
    if (adapter_.present()) {
      lora.a = Owned(adapter_.Take(a_name, {rank, inputs}));
      lora.b = Owned(adapter_.Take(b_name, {part.outputs, rank}));
      return lora;
    }
    const double bound =
        1.0 / std::sqrt(static_cast<double>(inputs));  // Kaiming-uniform with a = sqrt(5), as PEFT draws A
    const at::Tensor drawn = at::empty({rank, inputs}, at::kFloat);
    lora.a = drawn.uniform_(-bound, bound, NamedGenerator(options_.seed, a_name)).to(options_.dtype);
    lora.b = at::zeros({part.outputs, rank}, options_.dtype);
    return lora;
  }

  const ModelConfig& config_;
  const BaseTensors& base_;
  const AdapterPlan& plan_;
  const WeightOptions& options_;
  AdapterTensors adapter_;
  ModelWeights weights_;
};

at::Tensor GradientLike(const at::Tensor& value) { return at::zeros(value.sizes(), at::kFloat); }

// Fills a TrainableList in the order of the model.
class GradientAttacher {
 public:
  GradientAttacher(const AdapterPlan& plan, TrainableList* list) : plan_(plan), list_(list) {}

  TrainableRange Vocabulary(const std::string& name, bool trains, VocabularyWeight* weight) {
    const size_t begin = list_->items.size();
    if (trains) {
      weight->gradient = GradientLike(weight->value);
      Add(name, weight->value, weight->gradient, false);
    }
    return {begin, list_->items.size()};
  }
  TrainableRange Norm(const std::string& name, NormWeight* norm) {
    const size_t begin = list_->items.size();
    if (plan_.trains_norms) {
      norm->gradient = GradientLike(norm->value);
      Add(name, norm->value, norm->gradient, false);
    }
    return {begin, list_->items.size()};
  }
  void Linear(size_t layer, FusedLinear* linear) {
    if (plan_.trains_base) linear->weight_gradient = GradientLike(linear->weight);
    for (LinearPart& part : linear->parts) {
      const std::string name = ModuleName(layer, part.module);
      if (plan_.trains_base) {
        Add(name + ".weight", linear->weight.narrow(0, part.first_output, part.outputs),
            linear->weight_gradient.narrow(0, part.first_output, part.outputs), false);
      }
      if (!part.lora) continue;
      part.lora->a_gradient = GradientLike(part.lora->a);
      part.lora->b_gradient = GradientLike(part.lora->b);
      Add(name + ".lora_A.weight", part.lora->a, part.lora->a_gradient, true);
      Add(name + ".lora_B.weight", part.lora->b, part.lora->b_gradient, true);
    }
  }

 private:
  void Add(const std::string& name, const at::Tensor& value, const at::Tensor& gradient, bool is_lora) {
    list_->items.push_back({plan_.has_lora ? kPeftPrefix + name : name, value, gradient, is_lora});
  }

  const AdapterPlan& plan_;
  TrainableList* list_;
};

// Rows of a frozen linear layer with LoRA added in fp32, over what the base has or over what it was quantized to.
at::Tensor MergedLinear(const at::Tensor& stored, const LinearPart& part, jobfile::MergedBase merged_base) {
  at::Tensor weight = stored;
  if (part.quantized && merged_base == jobfile::MergedBase::kQuantized) {
    weight = at::empty(stored.sizes(), at::kFloat);
    DequantizeNf4(*part.quantized, weight);
  }
  if (!part.lora) return weight;
  const at::Tensor update = at::mm(part.lora->b.to(at::kFloat), part.lora->a.to(at::kFloat));
  return weight.to(at::kFloat).add(update, part.lora->scale);
}

// The tensors that are neither as the base has them nor merely merged: name and current value.
std::vector<NamedTensor> ChangedTensors(const AdapterPlan& plan, const ModelWeights& weights) {
  std::vector<NamedTensor> changed;
  const auto add = [&](const std::string& name, const at::Tensor& value, bool trains) {
    const auto& replaced = weights.replaced;
    if (trains || std::find(replaced.begin(), replaced.end(), name) != replaced.end())
      changed.emplace_back(name, value);
  };
  add(kEmbeddingName, weights.embedding.value, plan.trains_embedding);
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    const LayerWeights& layer_weights = weights.layers[layer];
    add(LayerPrefix(layer) + "input_layernorm.weight", layer_weights.input_norm.value, plan.trains_norms);
    add(LayerPrefix(layer) + "post_attention_layernorm.weight", layer_weights.post_attention_norm.value,
        plan.trains_norms);
    for (const FusedLinear* linear :
         {&layer_weights.query_key_value, &layer_weights.output, &layer_weights.gate_up, &layer_weights.down}) {
      for (const LinearPart& part : linear->parts) {
        if (!linear->weight.defined()) continue;
        add(ModuleName(layer, part.module) + ".weight", linear->weight.narrow(0, part.first_output, part.outputs),
            plan.trains_base);
      }
    }
  }
  add(kFinalNormName, weights.final_norm.value, plan.trains_norms);
  add(kHeadName, weights.head.value, plan.trains_head);
  return changed;
}

}  // namespace

AdaptableModel AdaptableModelOf(const ModelConfig& config) {
  AdaptableModel model;
  model.default_targets = {"q_proj", "k_proj", "v_proj", "o_proj"};
  model.tied_embeddings = config.tie_word_embeddings;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (const std::string& module : AdaptableModules()) {
      model.linear_names.push_back(ModuleName(static_cast<size_t>(layer), module));
    }
  }
  return model;
}

ModelWeights LoadModelWeights(const ModelConfig& config, const BaseTensors& base, const AdapterPlan& plan,
                              const WeightOptions& options) {
  return Loader(config, base, plan, options).Load();
}

TrainableList AttachGradients(const ModelConfig& config, const AdapterPlan& plan, ModelWeights* weights) {
  TrainableList list;
  GradientAttacher attach(plan, &list);
  list.embedding = attach.Vocabulary(kEmbeddingName, plan.trains_embedding, &weights->embedding);
  for (size_t layer = 0; layer < weights->layers.size(); ++layer) {
    LayerWeights& layer_weights = weights->layers[layer];
    const size_t begin = list.items.size();
    attach.Norm(LayerPrefix(layer) + "input_layernorm.weight", &layer_weights.input_norm);
    attach.Linear(layer, &layer_weights.query_key_value);
    attach.Linear(layer, &layer_weights.output);
    attach.Norm(LayerPrefix(layer) + "post_attention_layernorm.weight", &layer_weights.post_attention_norm);
    attach.Linear(layer, &layer_weights.gate_up);
    attach.Linear(layer, &layer_weights.down);
    list.layers.push_back({begin, list.items.size()});
  }
  list.final_norm = attach.Norm(kFinalNormName, &weights->final_norm);
  if (config.tie_word_embeddings) {
    weights->head.gradient = weights->embedding.gradient;
    list.head = {list.items.size(), list.items.size()};
  } else {
    list.head = attach.Vocabulary(kHeadName, plan.trains_head, &weights->head);
  }
  return list;
}

std::vector<Trainable> CarriedTensors(const ModelWeights& weights, const TrainableList& trainables) {
  std::set<std::string> trained;
  for (const Trainable& trainable : trainables.items) trained.insert(trainable.name);
  std::vector<Trainable> carried;
  for (const auto& [name, value] : ChangedTensors(AdapterPlan{}, weights)) {
    if (trained.count(kPeftPrefix + name) == 0) carried.push_back({kPeftPrefix + name, value, at::Tensor(), false});
  }
  return carried;
}

ModelWeights BaseOf(const ModelConfig& config, const BaseTensors& base, const AdapterPlan& plan,
                    const ModelWeights& weights) {
  const at::ScalarType dtype = weights.embedding.value.scalar_type();
  if (plan.trains_base) {
    WeightOptions options;
    options.dtype = dtype;
    return LoadModelWeights(config, base, AdapterPlan{}, options);
  }
  ModelWeights result = weights;
  const auto read = [&](const std::string& name) { return base.Read(name).to(dtype, false, /*copy=*/true); };
  result.embedding.value = read(kEmbeddingName);
  for (size_t layer = 0; layer < result.layers.size(); ++layer) {
    result.layers[layer].input_norm.value = read(LayerPrefix(layer) + "input_layernorm.weight");
    result.layers[layer].post_attention_norm.value = read(LayerPrefix(layer) + "post_attention_layernorm.weight");
  }
  result.final_norm.value = read(kFinalNormName);
  result.head.value = config.tie_word_embeddings ? result.embedding.value : read(kHeadName);
  return result;
}

ModelWeights OverOriginalLinears(const BaseTensors& base, const ModelWeights& weights) {
  ModelWeights result = weights;
  for (size_t layer = 0; layer < result.layers.size(); ++layer) {
    LayerWeights& layer_weights = result.layers[layer];
    for (FusedLinear* linear :
         {&layer_weights.query_key_value, &layer_weights.output, &layer_weights.gate_up, &layer_weights.down}) {
      for (LinearPart& part : linear->parts) {
        if (!part.quantized) continue;
        part.quantized.reset();
        part.stored = base.Read(ModuleName(layer, part.module) + ".weight");
      }
    }
  }
  return result;
}

void VisitMergedTensors(const ModelConfig& config, const BaseTensors& base, const AdapterPlan& plan,
                        const ModelWeights& weights, jobfile::MergedBase merged_base,
                        const std::function<void(const std::string& name, const at::Tensor& value)>& visit) {
  std::map<std::string, at::Tensor> changed;
  for (auto& [name, value] : ChangedTensors(plan, weights)) changed[name] = value;
  std::map<std::string, const LinearPart*> part_of;
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    const LayerWeights& layer_weights = weights.layers[layer];
    for (const FusedLinear* linear :
         {&layer_weights.query_key_value, &layer_weights.output, &layer_weights.gate_up, &layer_weights.down}) {
      for (const LinearPart& part : linear->parts) {
        part_of[ModuleName(layer, part.module) + ".weight"] = &part;
      }
    }
  }
  for (const TensorShape& tensor : BaseTensorShapes(config)) {
    const at::ScalarType dtype = base.ExportDtype(tensor.name);
    if (const auto found = changed.find(tensor.name); found != changed.end()) {
      visit(tensor.name, found->second.to(dtype));
    } else if (const auto part = part_of.find(tensor.name); part != part_of.end()) {
      visit(tensor.name, MergedLinear(base.Read(tensor.name), *part->second, merged_base).to(dtype));
    } else {
      visit(tensor.name, base.Read(tensor.name).to(dtype));
    }
  }
}

}  // namespace longspan::trainer
