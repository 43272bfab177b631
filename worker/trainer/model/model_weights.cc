#include "worker/trainer/model/model_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {
namespace {

constexpr char kPeftPrefix[] = "base_model.model.";

// The tensors of an adapter folder, each of which somebody must take: one left over means that the folder is for
// another model.
class AdapterTensors {
 public:
  explicit AdapterTensors(const std::string& folder) {
    if (folder.empty()) return;
    file_ = SafetensorsFile::Open(folder + "/adapter_model.safetensors");
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
  // PEFT looks for a head of two names under one of them, by the version of transformers: what a job made of such an
  // adapter could lose it without a word.
  void CheckHead(const ModelFamily& family) const {
    if (family.head_alias.empty()) return;
    for (const std::string& head : {family.head, family.head_alias}) {
      if (!Has(head + ".weight")) continue;
      throw UserError(fmt::format("cannot load {}: {} replaces the head of {}, which does not train beside LoRA",
                                  file_->path(), head, family.architecture));
    }
  }
  // With tied embeddings the file has the one tensor under two names; PEFT keeps an old head otherwise.
  void CheckTied(const ModelConfig& config) {
    if (!file_ || !config.tie_word_embeddings) return;
    const std::string embedding = EmbeddingName(config), head = HeadName(config);
    if (!Has(embedding) && !Has(head)) return;
    if (!Has(embedding)) FailTied("lacks " + config.family->embedding + " beside " + config.family->head);
    if (!Has(head)) FailTied("lacks " + config.family->head + " beside " + config.family->embedding);
    if (!at::equal(Take(head, {config.vocab_size, config.hidden_size}), file_->View(kPeftPrefix + embedding)))
      FailTied("has a " + config.family->head + " that differs from " + config.family->embedding);
  }

 private:
  [[noreturn]] void FailTied(const std::string& what) const {
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
    const std::vector<int64_t> vocabulary = {config_.vocab_size, config_.hidden_size};
    adapter_.CheckHead(*config_.family);
    adapter_.CheckTied(config_);
    weights_.embedding.value = LoadReplaceable(EmbeddingName(config_), vocabulary);
    for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) LoadLayer(static_cast<size_t>(layer));
    weights_.final_norm = LoadNorm(config_.family->final_norm, config_.hidden_size);
    weights_.head.value =
        config_.tie_word_embeddings ? weights_.embedding.value : LoadReplaceable(HeadName(config_), vocabulary);
    if (adapter_.present()) adapter_.CheckAllTaken();
    return std::move(weights_);
  }

 private:
  at::TensorOptions Options() const { return at::TensorOptions(options_.device).dtype(options_.dtype); }

  // A copy of our own in the compute dtype: nothing points into a file that may change.
  at::Tensor Owned(const at::Tensor& stored) const {
    return stored.to(Options(), /*non_blocking=*/false, /*copy=*/true);
  }

  at::Tensor OfBase(const std::string& name) const {
    const at::Tensor value = at::empty(base_.ShapeOf(name), Options());
    base_.ReadInto(name, value);
    return value;
  }

  at::Tensor LoadReplaceable(const std::string& name, at::IntArrayRef shape) {
    if (!adapter_.Has(name)) return OfBase(name);
    weights_.replaced.push_back(name);
    return Owned(adapter_.Take(name, shape));
  }

  NormWeight LoadNorm(const std::string& name, int64_t size) {
    NormWeight norm;
    norm.name = name;
    norm.kind = config_.family->norm;
    norm.value = LoadReplaceable(name + ".weight", {size});
    if (norm.kind == NormKind::kLayer) norm.bias = LoadReplaceable(name + ".bias", {size});
    return norm;
  }

  void LoadLayer(size_t layer) {
    const ModelFamily& family = *config_.family;
    LayerWeights& weights = weights_.layers.emplace_back();
    weights.input_norm = LoadNorm(NameInLayer(config_, layer, family.input_norm), config_.hidden_size);
    weights.query_key_value = LoadLinear(layer, 0, family.query_key_value, config_.biases.query_key_value);
    if (family.has_head_norms()) {
      weights.query_norm = LoadNorm(NameInLayer(config_, layer, family.query_norm), config_.head_dim);
      weights.key_norm = LoadNorm(NameInLayer(config_, layer, family.key_norm), config_.head_dim);
    }
    weights.output = LoadLinear(layer, 1, {family.output}, config_.biases.output);
    weights.post_attention_norm =
        LoadNorm(NameInLayer(config_, layer, family.post_attention_norm), config_.hidden_size);
    weights.mlp_in = LoadLinear(layer, 2, family.mlp_in, config_.biases.mlp);
    weights.mlp_out = LoadLinear(layer, 3, {family.mlp_out}, config_.biases.mlp);
    weights.window = config_.layer_windows[layer];
  }

  FusedLinear LoadLinear(size_t layer, size_t linear_index, const std::vector<std::string>& modules, bool has_bias) {
    FusedLinear linear;
    linear.dtype = options_.dtype;
    int64_t outputs = 0, inputs = 0;
    for (const std::string& module : modules) {
      LinearPart& part = linear.parts.emplace_back();
      part.name = NameInLayer(config_, layer, module);
      part.module = LastName(module);
      part.module_index = std::find(paths_.begin(), paths_.end(), module) - paths_.begin();
      const std::vector<int64_t> shape = base_.ShapeOf(part.name + ".weight");
      part.first_output = outputs;
      part.outputs = shape[0];
      inputs = shape[1];
      outputs += part.outputs;
    }
    if (options_.shards != nullptr) {
      linear.gathered = options_.shards->Gathered(static_cast<int64_t>(layer), linear_index);
    } else if (options_.quantized == nullptr) {
      linear.weight = at::empty({outputs, inputs}, Options());
    }
    if (has_bias) linear.bias = at::empty({outputs}, Options());
    for (size_t index = 0; index < modules.size(); ++index) {
      LinearPart& part = linear.parts[index];
      if (options_.shards != nullptr) {
        options_.shards->Keep(static_cast<int64_t>(layer), linear_index, part.first_output,
                              base_.Read(part.name + ".weight"));
        base_.LetGo(part.name + ".weight");
      } else if (options_.quantized == nullptr) {
        base_.ReadInto(part.name + ".weight", linear.weight.narrow(0, part.first_output, part.outputs));
      } else {
        part.quantized = OnDevice(std::move(options_.quantized->at(part.name)), options_.device);
      }
      if (has_bias) linear.bias.narrow(0, part.first_output, part.outputs).copy_(base_.Read(part.name + ".bias"));
      if (plan_.Targets(part.module)) part.lora = LoadLora(part, inputs);
    }
    if (options_.fp8) {
      linear.fp8 = QuantizeFp8(linear.weight, linear.parts.front().name);
      linear.weight.reset();
    }
    linear.Refresh();
    return linear;
  }

  LoraFactors LoadLora(const LinearPart& part, int64_t inputs) {
    const std::string a_name = part.name + ".lora_A.weight";
    const std::string b_name = part.name + ".lora_B.weight";
    const int64_t rank = plan_.RankOf(part.name);
    LoraFactors lora;
    lora.scale = plan_.ScaleOf(part.name);
    if (adapter_.present()) {
      lora.a = Owned(adapter_.Take(a_name, {rank, inputs}));
      lora.b = Owned(adapter_.Take(b_name, {part.outputs, rank}));
      return lora;
    }
    const double bound =
        1.0 / std::sqrt(static_cast<double>(inputs));  // Kaiming-uniform with a = sqrt(5), as PEFT draws A
    const at::Tensor drawn = at::empty({rank, inputs}, at::kFloat);
    lora.a = drawn.uniform_(-bound, bound, NamedGenerator(options_.seed, a_name)).to(Options());
    lora.b = at::zeros({part.outputs, rank}, Options());
    return lora;
  }

  const ModelConfig& config_;
  const BaseTensors& base_;
  const AdapterPlan& plan_;
  const WeightOptions& options_;
  const std::vector<std::string> paths_ = config_.family->LinearPaths();
  AdapterTensors adapter_;
  ModelWeights weights_;
};

at::Tensor GradientLike(const at::Tensor& value) { return at::zeros(value.sizes(), value.options().dtype(at::kFloat)); }

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
  TrainableRange Norm(NormWeight* norm) {
    const size_t begin = list_->items.size();
    if (plan_.trains_norms) {
      norm->gradient = GradientLike(norm->value);
      Add(norm->name + ".weight", norm->value, norm->gradient, false);
      if (norm->bias.defined()) {
        norm->bias_gradient = GradientLike(norm->bias);
        Add(norm->name + ".bias", norm->bias, norm->bias_gradient, false);
      }
    }
    return {begin, list_->items.size()};
  }
  void Linear(FusedLinear* linear) {
    if (plan_.trains_base) linear->weight_gradient = GradientLike(linear->weight);
    if (plan_.trains_base && linear->bias.defined()) linear->bias_gradient = GradientLike(linear->bias);
    for (LinearPart& part : linear->parts) {
      const auto rows = [&part](const at::Tensor& all) { return all.narrow(0, part.first_output, part.outputs); };
      if (plan_.trains_base) Add(part.name + ".weight", rows(linear->weight), rows(linear->weight_gradient), false);
      if (linear->bias_gradient.defined()) {
        Add(part.name + ".bias", rows(linear->bias), rows(linear->bias_gradient), false);
      }
      if (!part.lora) continue;
      part.lora->a_gradient = GradientLike(part.lora->a);
      part.lora->b_gradient = GradientLike(part.lora->b);
      Add(part.name + ".lora_A.weight", part.lora->a, part.lora->a_gradient, true);
      Add(part.name + ".lora_B.weight", part.lora->b, part.lora->b_gradient, true);
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
    weight = at::empty(stored.sizes(), part.quantized->scale_maxima.options());
    DequantizeNf4(*part.quantized, weight);
    weight = weight.to(at::kCPU);
  }
  if (!part.lora) return weight;
  const at::Tensor update = at::mm(part.lora->b.to(at::kFloat), part.lora->a.to(at::kFloat)).to(at::kCPU);
  return weight.to(at::kFloat).add(update, part.lora->scale);
}

// The tensors that are neither as the base has them nor merely merged: name and current value.
std::vector<NamedTensor> ChangedTensors(const ModelConfig& config, const AdapterPlan& plan,
                                        const ModelWeights& weights) {
  std::vector<NamedTensor> changed;
  const auto add = [&](const std::string& name, const at::Tensor& value, bool trains) {
    const auto& replaced = weights.replaced;
    if (trains || std::find(replaced.begin(), replaced.end(), name) != replaced.end())
      changed.emplace_back(name, value);
  };
  const auto add_norm = [&](const NormWeight& norm) {
    add(norm.name + ".weight", norm.value, plan.trains_norms);
    if (norm.bias.defined()) add(norm.name + ".bias", norm.bias, plan.trains_norms);
  };
  add(EmbeddingName(config), weights.embedding.value, plan.trains_embedding);
  for (const LayerWeights& layer : weights.layers) {
    for (const NormWeight* norm : layer.norms()) add_norm(*norm);
    for (const FusedLinear* linear : layer.linears()) {
      for (const LinearPart& part : linear->parts) {
        const auto rows = [&part](const at::Tensor& all) { return all.narrow(0, part.first_output, part.outputs); };
        if (linear->weight.defined()) add(part.name + ".weight", rows(linear->weight), plan.trains_base);
        if (linear->bias.defined()) add(part.name + ".bias", rows(linear->bias), plan.trains_base);
      }
    }
  }
  add_norm(weights.final_norm);
  add(HeadName(config), weights.head.value, plan.trains_head);
  return changed;
}

}  // namespace

ModelWeights LoadModelWeights(const ModelConfig& config, const BaseTensors& base, const AdapterPlan& plan,
                              const WeightOptions& options) {
  return Loader(config, base, plan, options).Load();
}

TrainableList AttachGradients(const ModelConfig& config, const AdapterPlan& plan, ModelWeights* weights) {
  TrainableList list;
  GradientAttacher attach(plan, &list);
  list.embedding = attach.Vocabulary(EmbeddingName(config), plan.trains_embedding, &weights->embedding);
  for (LayerWeights& layer : weights->layers) {
    const size_t begin = list.items.size();
    attach.Norm(&layer.input_norm);
    attach.Linear(&layer.query_key_value);
    if (layer.has_head_norms()) {
      attach.Norm(&layer.query_norm);
      attach.Norm(&layer.key_norm);
    }
    attach.Linear(&layer.output);
    attach.Norm(&layer.post_attention_norm);
    attach.Linear(&layer.mlp_in);
    attach.Linear(&layer.mlp_out);
    list.layers.push_back({begin, list.items.size()});
  }
  list.final_norm = attach.Norm(&weights->final_norm);
  if (config.tie_word_embeddings) {
    weights->head.gradient = weights->embedding.gradient;
    list.head = {list.items.size(), list.items.size()};
  } else {
    list.head = attach.Vocabulary(HeadName(config), plan.trains_head, &weights->head);
  }
  return list;
}

std::vector<Trainable> CarriedTensors(const ModelConfig& config, const ModelWeights& weights,
                                      const TrainableList& trainables) {
  std::set<std::string> trained;
  for (const Trainable& trainable : trainables.items) trained.insert(trainable.name);
  std::vector<Trainable> carried;
  for (const auto& [name, value] : ChangedTensors(config, AdapterPlan{}, weights)) {
    if (trained.count(kPeftPrefix + name) == 0) carried.push_back({kPeftPrefix + name, value, at::Tensor(), false});
  }
  return carried;
}

ModelWeights BaseOf(const ModelConfig& config, const BaseTensors& base, const AdapterPlan& plan,
                    const ModelWeights& weights) {
  const at::Tensor& like = weights.embedding.value;
  if (plan.trains_base) {
    WeightOptions options;
    options.dtype = like.scalar_type();
    options.device = like.device();
    return LoadModelWeights(config, base, AdapterPlan{}, options);
  }
  ModelWeights result = weights;
  const auto read = [&](const std::string& name) {
    const at::Tensor value = at::empty(base.ShapeOf(name), like.options());
    base.ReadInto(name, value);
    return value;
  };
  const auto read_norm = [&](NormWeight* norm) {
    norm->value = read(norm->name + ".weight");
    if (norm->bias.defined()) norm->bias = read(norm->name + ".bias");
  };
  result.embedding.value = read(EmbeddingName(config));
  for (LayerWeights& layer : result.layers) {
    for (NormWeight* norm : layer.norms()) read_norm(norm);
  }
  read_norm(&result.final_norm);
  result.head.value = config.tie_word_embeddings ? result.embedding.value : read(HeadName(config));
  return result;
}

ModelWeights OverOriginalLinears(const BaseTensors& base, const ModelWeights& weights) {
  ModelWeights result = weights;
  for (LayerWeights& layer : result.layers) {
    for (FusedLinear* linear : layer.linears()) {
      for (LinearPart& part : linear->parts) {
        if (!part.quantized && !linear->fp8) continue;
        part.quantized.reset();
        part.stored = base.Read(part.name + ".weight");
      }
      linear->fp8.reset();
    }
  }
  return result;
}

void VisitMergedTensors(const ModelConfig& config, const BaseTensors& base, const AdapterPlan& plan,
                        const ModelWeights& weights, jobfile::MergedBase merged_base,
                        const std::function<void(const std::string& name, const at::Tensor& value)>& visit) {
  std::map<std::string, at::Tensor> changed;
  for (auto& [name, value] : ChangedTensors(config, plan, weights)) changed[name] = value;
  std::map<std::string, const LinearPart*> part_of;
  for (const LayerWeights& layer : weights.layers) {
    for (const FusedLinear* linear : layer.linears()) {
      for (const LinearPart& part : linear->parts) {
        part_of[part.name + ".weight"] = &part;
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
