// What a job's method trains, settled: from the job file, and from the PEFT folder it starts from where there is one.
//
// UserError for a folder that is wrong or uses what Longspan does not (names it); SpecError for a job that disagrees
// with it or asks for a module that the model does not have.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {

// The linear layers that can carry LoRA, in the order of the layer.
const std::vector<std::string>& AdaptableModules();

struct AdapterPlan {
  bool has_lora = false;          // lora, longlora
  bool trains_base = false;       // full: every weight
  bool trains_embedding = false;  // longlora and full; a tied lm_head goes with it
  bool trains_norms = false;      // longlora and full
  int64_t rank = 0;
  double alpha = 0;
  double dropout = 0;
  std::vector<std::string> targets;  // in the order of AdaptableModules

  double scale() const { return alpha / static_cast<double>(rank); }
  bool Targets(const std::string& module) const;
};

AdapterPlan ResolveAdapterPlan(const jobfile::JobSpec& spec);

// The tensors of a PEFT folder, by their names in the saved file:
// base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
SafetensorsFile OpenAdapterWeights(const std::string& folder);

}  // namespace longspan::trainer
