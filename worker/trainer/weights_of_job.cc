#include "worker/trainer/weights_of_job.h"

#include "worker/model_config/adapter_plan.h"
#include "worker/trainer/checkpoint/adapter_config.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {

bool ExportsOriginalWeights(const jobfile::JobSpec& spec) {
  if (!spec.output.merged) return false;
  if (spec.training.fp8) return spec.kind == jobfile::JobKind::kExtend;
  return IsQuantized(spec.method.kind) && spec.output.merged_base == jobfile::MergedBase::kOriginal;
}

std::string WeightsFileOf(const jobfile::JobSpec& spec) {
  return spec.method.kind == jobfile::MethodKind::kFull ? "model.safetensors" : "adapter_model.safetensors";
}

namespace {

std::vector<Trainable> TrainedAndCarried(CausalLm& model) {
  std::vector<Trainable> tensors = model.trainables();
  for (Trainable& carried : model.carried()) tensors.push_back(std::move(carried));
  return tensors;
}

// "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" -> "model.layers.0.self_attn.q_proj"; empty for
// another tensor than A.
std::string ModuleOfFactorA(const std::string& name) {
  const std::string prefix = "base_model.model.", suffix = ".lora_A.weight";
  if (!name.starts_with(prefix) || !name.ends_with(suffix)) return "";
  return name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
}

}  // namespace

std::vector<NamedTensor> StoredTensors(CausalLm& model) {
  return SavedTensors(TrainedAndCarried(model), model.config().tie_word_embeddings);
}

nlohmann::json AdapterConfigOf(const jobfile::JobSpec& spec, CausalLm& model) {
  if (spec.method.kind == jobfile::MethodKind::kFull) return nullptr;
  const AdapterPlan& plan = model.adapter();
  AdapterDescription adapter;
  adapter.base_model = std::filesystem::absolute(spec.model.path).string();
  adapter.rank = plan.rank;
  adapter.alpha = plan.alpha;
  adapter.dropout = plan.dropout;
  adapter.rslora = plan.rslora;
  std::map<std::string, int64_t> ranks;
  std::map<std::string, double> alphas;
  for (const Trainable& trainable : model.trainables()) {
    const std::string module = ModuleOfFactorA(trainable.name);
    if (module.empty()) continue;
    ranks[module] = trainable.value.size(0);
    alphas[module] = plan.AlphaOf(module);
  }
  adapter.rank_pattern = DisjointPattern(ranks, plan.rank);
  adapter.alpha_pattern = DisjointPattern(alphas, plan.alpha);
  adapter.targets = plan.targets;
  adapter.modules_to_save = ModulesToSave(TrainedAndCarried(model), model.config().tie_word_embeddings);
  return AdapterConfigDocument(adapter);
}

void LoadTrainedWeights(const std::filesystem::path& checkpoint, const jobfile::JobSpec& spec, CausalLm& model) {
  const SafetensorsFile file = SafetensorsFile::Open((checkpoint / WeightsFileOf(spec)).string());
  for (const NamedTensor& wanted : SavedTensors(model.trainables(), model.config().tie_word_embeddings)) {
    if (!file.Has(wanted.first)) {
      throw UserError(file.path() + " lacks the trained tensor " + wanted.first + ": nothing is made of it");
    }
    const at::Tensor stored = file.View(wanted.first);
    if (stored.sizes() != wanted.second.sizes()) {
      throw UserError(file.path() + " holds " + wanted.first + " in another shape than this job trains");
    }
  }
  for (const Trainable& trainable : model.trainables()) at::Tensor(trainable.value).copy_(file.View(trainable.name));
  model.ValuesChanged();
}

}  // namespace longspan::trainer
