// What a job leaves: adapter/ for PEFT, merged/ as a Hugging Face folder, and the run card.
//
//   adapter/  adapter_model.safetensors  adapter_config.json  extended_config/config.json  README.md
//   merged/   model*.safetensors (+ index)  config.json  generation_config.json  tokenizer files
//   run_card.json  run_card.md
//
// An adapter cannot carry RoPE: loaded over the base's own config it would silently run with the old positions. So the
// new config lies in extended_config/ (at the top of the folder AutoModel would take the adapter for a model), and
// README.md shows the lines that load the base with it. Every folder is written under a temporary name and renamed. The
// model holds the trained values.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/checkpoint/checkpoint.h"
#include "worker/trainer/model/causal_lm.h"

namespace longspan::trainer {

inline constexpr int64_t kShardBytesMax = int64_t{5} << 30;

// Both replace an older folder of that name. UserError when a trained tensor would be missing from the result.
void ExportAdapter(const jobfile::JobSpec& spec, CausalLm& model, const std::filesystem::path& work);
void ExportMerged(const jobfile::JobSpec& spec, CausalLm& model, const std::filesystem::path& work,
                  int64_t shard_bytes_max = kShardBytesMax);

struct RunCardFacts {
  std::string job;
  std::string checkpoint;  // "step-00000150.attempt-1"
  TrainerState state;
  nlohmann::json dataset;     // what dataset.json of the work folder says; null: not there
  nlohmann::json evaluation;  // what evaluation.json says; null: not there
  std::string version;
};
// Written last: a job whose run card names its last checkpoint is exported whole.
void WriteRunCard(const jobfile::JobSpec& spec, CausalLm& model, const RunCardFacts& facts,
                  const std::filesystem::path& work);

}  // namespace longspan::trainer
