#include "worker/planner/job_shape.h"

#include <algorithm>
#include <string>
#include <vector>

#include "worker/model_config/tensor_names.h"

namespace longspan::planner {
namespace {

// LoRA ranks of the modules in the layer where they are largest: patterns may give layers different ones.
int64_t LargestRanks(const trainer::ModelConfig& config, const trainer::AdapterPlan& plan,
                     const std::vector<std::string>& modules) {
  int64_t largest = 0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    int64_t ranks = 0;
    for (const std::string& module : modules) {
      if (!plan.Targets(trainer::LastName(module))) continue;
      ranks += plan.RankOf(trainer::NameInLayer(config, static_cast<size_t>(layer), module));
    }
    largest = std::max(largest, ranks);
  }
  return largest;
}

}  // namespace

jobfile::TrainingDtype ComputeDtype(const jobfile::JobSpec& spec) {
  if (spec.training.dtype) return *spec.training.dtype;
  return spec.training.fp8 ? jobfile::TrainingDtype::kBf16 : jobfile::TrainingDtype::kFp32;  // the default of a CPU
}

int64_t BytesOf(jobfile::TrainingDtype dtype) { return dtype == jobfile::TrainingDtype::kBf16 ? 2 : 4; }

StepShape StepShapeOf(const jobfile::JobSpec& spec, const trainer::ModelConfig& config,
                      const trainer::AdapterPlan& plan, int64_t rows) {
  StepShape shape;
  const trainer::ModelFamily& family = *config.family;
  shape.rows = rows;
  shape.element_bytes = BytesOf(ComputeDtype(spec));
  shape.num_hidden_layers = config.num_hidden_layers;
  shape.hidden_size = config.hidden_size;
  shape.intermediate_size = config.intermediate_size;
  shape.vocab_size = config.vocab_size;
  shape.query_heads = config.num_attention_heads;
  shape.key_value_heads = config.num_key_value_heads;
  shape.head_dim = config.head_dim;
  shape.has_gate = family.has_gate();
  shape.parallel_residual = config.parallel_residual;
  shape.has_head_norms = family.has_head_norms();
  shape.dropout = plan.has_lora && plan.dropout > 0;
  shape.fp8 = plan.fp8;
  shape.trains_weights = plan.trains_base;
  shape.trains_norms = plan.trains_norms;
  shape.trains_biases =
      plan.trains_base && (config.biases.query_key_value || config.biases.output || config.biases.mlp);
  shape.trains_head = plan.trains_head;
  shape.weight_ranks = spec.resources.shard_weights ? spec.resources.slots : 0;
  const auto linear = [&](const std::vector<std::string>& modules, int64_t inputs, int64_t outputs) {
    return LinearShape{inputs, outputs, plan.has_lora ? LargestRanks(config, plan, modules) : 0, plan.quantized};
  };
  shape.query_key_value = linear(family.query_key_value, shape.hidden_size, shape.query_key_value_size());
  shape.output = linear({family.output}, shape.query_size(), shape.hidden_size);
  shape.mlp_in = linear(family.mlp_in, shape.hidden_size, shape.mlp_in_size());
  shape.mlp_out = linear({family.mlp_out}, shape.intermediate_size, shape.hidden_size);
  return shape;
}

ModelShape ModelShapeOf(const trainer::ModelConfig& config) {
  ModelShape shape;
  shape.hidden_size = config.hidden_size;
  shape.query_size = config.num_attention_heads * config.head_dim;
  shape.key_value_size = config.num_key_value_heads * config.head_dim;
  shape.intermediate_size = config.intermediate_size;
  shape.mlp_matrices = static_cast<int64_t>(config.family->mlp_in.size()) + 1;
  shape.num_hidden_layers = config.num_hidden_layers;
  shape.vocab_size = config.vocab_size;
  return shape;
}

}  // namespace longspan::planner
