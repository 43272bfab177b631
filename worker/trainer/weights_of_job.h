// What a job's trained weights are called and where they go: shared by the checkpoint, the evaluation and the export.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {

// Whether merged/ has LoRA over other weights than those it was trained on: then it is measured apart.
bool ExportsOriginalWeights(const jobfile::JobSpec& spec);

// adapter_model.safetensors, or model.safetensors for method full.
std::string WeightsFileOf(const jobfile::JobSpec& spec);

// The trained values under the names of the saved file, with what an adapter folder had replaced before: whole for
// PEFT.
std::vector<NamedTensor> StoredTensors(CausalLm& model);

// adapter_config.json of the job; null for method full.
nlohmann::json AdapterConfigOf(const jobfile::JobSpec& spec, CausalLm& model);

// Copies the trained values of a checkpoint's folder into the model. UserError when a trained tensor is missing or has
// another shape: a result without it would be wrong and look right.
void LoadTrainedWeights(const std::filesystem::path& checkpoint, const jobfile::JobSpec& spec, CausalLm& model);

}  // namespace longspan::trainer
