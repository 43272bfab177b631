// A model folder's config.json, read and checked, and what a job's `rope` makes of it.
//
// Values; pure functions, thread-safe. UserError names the file and the key. Only LlamaForCausalLM is known so far;
// anything else is refused by name, because running it with the wrong parts looks like it works. Positions:
// rope_scaling.h, rope_extension.h.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/model/rope_scaling.h"

namespace longspan::trainer {

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;  // divides num_attention_heads
  int64_t head_dim = 0;             // even
  int64_t vocab_size = 0;
  double rms_norm_eps = 1e-6;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  at::ScalarType dtype = at::kFloat;  // `dtype` or `torch_dtype`; kFloat when neither is given
  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;  // empty when config.json has none

  RopeParameters original_rope;                  // the folder's own
  int64_t original_max_position_embeddings = 0;  // tokens that the folder's own positions reach
  RopeParameters rope;                           // with the job's extension, after WithJobRope; else the folder's own
  int64_t max_position_embeddings = 0;           // likewise

  nlohmann::json document;  // config.json as read
};

// Reads FOLDER/config.json.
ModelConfig ReadModelConfig(const std::string& folder);
// `where` opens every message: the path of the file.
ModelConfig ParseModelConfig(const nlohmann::json& document, const std::string& where);

// Applies the job's `rope` (rope_extension.h). max_position_embeddings becomes context_length where that is more.
ModelConfig WithJobRope(ModelConfig config, const jobfile::JobSpec& spec);

// config.json of the exported model: everything of the original, with the extended positions and the new length as
// transformers 4 and 5 both read them (WriteRopeParameters).
nlohmann::json ExportedConfigDocument(const ModelConfig& config);

}  // namespace longspan::trainer
