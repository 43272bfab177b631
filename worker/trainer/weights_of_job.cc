#include "worker/trainer/weights_of_job.h"

#include "worker/trainer/adapters/adapter_plan.h"
#include "worker/trainer/checkpoint/adapter_config.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {

std::string WeightsFileOf(const jobfile::JobSpec& spec) {
  return spec.method.kind == jobfile::MethodKind::kFull ? "model.safetensors" : "adapter_model.safetensors";
}

nlohmann::json AdapterConfigOf(const jobfile::JobSpec& spec, CausalLm& model) {
  if (spec.method.kind == jobfile::MethodKind::kFull) return nullptr;
  const AdapterPlan& plan = model.adapter();
  AdapterDescription adapter;
  adapter.base_model = std::filesystem::absolute(spec.model.path).string();
  adapter.rank = plan.rank;
  adapter.alpha = plan.alpha;
  adapter.dropout = plan.dropout;
  adapter.targets = plan.targets;
  adapter.modules_to_save = ModulesToSave(model.trainables(), model.config().tie_word_embeddings);
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
