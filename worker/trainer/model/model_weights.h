// All weights of a model in the form that the layers compute with, and the list of those that train.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "worker/model_config/adapter_plan.h"
#include "worker/model_config/model_config.h"
#include "worker/trainer/model/base_tensors.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/model/decoder_layer.h"
#include "worker/trainer/model/sharded_weights.h"
#include "worker/trainer/quantized/quantized_base.h"

namespace longspan::trainer {

// A (V, d) matrix: the token embedding or the output head. Tied, both are the same tensors.
struct VocabularyWeight {
  at::Tensor value;
  at::Tensor gradient;  // fp32; undefined when frozen
};

struct ModelWeights {
  VocabularyWeight embedding;
  std::vector<LayerWeights> layers;
  NormWeight final_norm;
  VocabularyWeight head;
  // Values that an adapter folder put in place of the base's ("model.norm.weight"), trained or not.
  std::vector<std::string> replaced;
};

// Where a Trainable becomes ready in the backward pass.
struct TrainableRange {
  size_t begin = 0, end = 0;
};
struct TrainableList {
  std::vector<Trainable> items;  // in the order of the model: embedding, layers, final norm, head
  TrainableRange embedding, final_norm, head;
  std::vector<TrainableRange> layers;
};

// Loads the base, LoRA (drawn from the seed, or the adapter folder's) and what the adapter folder replaces, in `dtype`.
struct WeightOptions {
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  std::string adapter_folder;          // empty: A drawn from the seed, B zero
  bool fp8 = false;                    // the linear layers in 8 bits, from the base's in `dtype`, which is bf16
  QuantizedBase* quantized = nullptr;  // the linear layers in 4 bits, taken from here; null: from the base
  ShardedWeights* shards = nullptr;    // the linear layers go there, this rank's part alone; null: they are whole
  int64_t seed = 0;
};
ModelWeights LoadModelWeights(const ModelConfig& config, const BaseTensors& base, const AdapterPlan& plan,
                              const WeightOptions& options);

// Allocates the gradients of what `plan` trains and lists it.
TrainableList AttachGradients(const ModelConfig& config, const AdapterPlan& plan, ModelWeights* weights);

// What an adapter folder replaced and what does not train (CausalLm::carried).
std::vector<Trainable> CarriedTensors(const ModelConfig& config, const ModelWeights& weights,
                                      const TrainableList& trainables);

// The weights as the base has them: LoRA off, trained and replaced values read again. Shares what never changed.
ModelWeights BaseOf(const ModelConfig& config, const BaseTensors& base, const AdapterPlan& plan,
                    const ModelWeights& weights);

// `weights` with the base's own linear layers in the place of those in 4 or 8 bits, as views that a pass copies from.
// Shares the rest; valid until LoRA changes.
ModelWeights OverOriginalLinears(const BaseTensors& base, const ModelWeights& weights);

// Visits the merged model tensor by tensor (CausalLm::ForEachMergedTensor).
void VisitMergedTensors(const ModelConfig& config, const BaseTensors& base, const AdapterPlan& plan,
                        const ModelWeights& weights, jobfile::MergedBase merged_base,
                        const std::function<void(const std::string& name, const at::Tensor& value)>& visit);

}  // namespace longspan::trainer
