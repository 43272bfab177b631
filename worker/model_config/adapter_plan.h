// What a job's method trains, settled: from the job file, from the model, and from the PEFT folder it starts from where
// there is one.
//
// UserError for a folder that is wrong or uses what Longspan does not (names it); SpecError for a job that disagrees
// with it or asks for what the model does not have.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/model_config/module_pattern.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {

// qlora and qlonglora: the base's linear layers are kept in 4 bits.
inline bool IsQuantized(jobfile::MethodKind kind) {
  return kind == jobfile::MethodKind::kQlora || kind == jobfile::MethodKind::kQlongLora;
}

struct AdapterPlan {
  bool has_lora = false;          // every method but full
  bool trains_base = false;       // full: the linear layers
  bool quantized = false;         // qlora and qlonglora: the base's linear layers in 4 bits
  bool fp8 = false;               // training.fp8: products with the base's linear layers in 8 bits
  bool trains_embedding = false;  // with tied embeddings the head is the same tensor
  bool trains_norms = false;
  bool trains_head = false;  // equal to trains_embedding where the embeddings are tied
  int64_t rank = 0;          // of modules that rank_pattern does not list
  double alpha = 0;          // likewise
  bool rslora = false;
  ModulePattern<int64_t> rank_pattern;
  ModulePattern<double> alpha_pattern;
  double dropout = 0;
  std::vector<std::string> targets;  // last names of modules, in the order of the model

  bool Targets(const std::string& module) const;  // by its last name
  // By the whole name of a module, "model.layers.0.self_attn.q_proj".
  int64_t RankOf(const std::string& name) const { return ValueOf(rank_pattern, name, rank); }
  double AlphaOf(const std::string& name) const { return ValueOf(alpha_pattern, name, alpha); }
  double ScaleOf(const std::string& name) const;  // alpha / r, or alpha / sqrt(r)
};

// What a plan needs to know of a model.
struct AdaptableModel {
  std::vector<std::string> linear_names;             // whole names of what can carry LoRA, in the order of the model
  std::vector<std::array<int64_t, 2>> linear_sizes;  // outputs and inputs of each; training.fp8 reads them
  std::vector<std::string> default_targets;          // last names
  bool tied_embeddings = false;
};

AdapterPlan ResolveAdapterPlan(const jobfile::JobSpec& spec, const AdaptableModel& model);

}  // namespace longspan::trainer
