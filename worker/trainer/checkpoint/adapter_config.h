// What PEFT needs beside the tensors: adapter_config.json, and the names under which it expects them.
//
// Checked against peft 0.21. For tied embeddings the one trained tensor is stored as embed_tokens and as lm_head: one
// name alone would leave the other half of the pair old when PEFT loads it. Pure.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {

// As resolved by the model (from the job or the adapter it started from).
struct AdapterDescription {
  std::string base_model;
  int64_t rank = 8;
  double alpha = 16;
  double dropout = 0;
  bool rslora = false;
  // No module is matched by two keys of one pattern, so the order of keys in the file means nothing.
  std::map<std::string, int64_t> rank_pattern;
  std::map<std::string, double> alpha_pattern;
  std::vector<std::string> targets;
  std::vector<std::string> modules_to_save;
};

nlohmann::json AdapterConfigDocument(const AdapterDescription& adapter);

// Last module names of the trained tensors that are no LoRA ("norm", "embed_tokens"), sorted; with lm_head where it is
// tied to a trained embedding. PEFT matches by suffix: `norm` also catches `input_layernorm`, which trains as well in
// every method here.
std::vector<std::string> ModulesToSave(const std::vector<Trainable>& trainables, bool tied);

// The trained values under the names of the saved file, the tied head under both of its names.
std::vector<NamedTensor> SavedTensors(const std::vector<Trainable>& trainables, bool tied);

}  // namespace longspan::trainer
