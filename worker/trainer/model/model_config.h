// A model folder's config.json, read and checked, and what a job's `rope` makes of it.
//
// Values; pure functions, thread-safe. UserError names the file and the key. Only LlamaForCausalLM is known so far, and
// of rope scalings only `linear`; anything else is refused by name, because running it with the wrong positions looks
// like it works.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {

// Rotary positions: position p turns pair i by p / linear_factor * theta^(-2i/D).
struct RopeParameters {
  double theta = 10000;
  double linear_factor = 1;
};

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
  int64_t original_max_position_embeddings = 0;  // the folder's own
  RopeParameters rope;                           // with the job's extension, after WithJobRope; else the folder's own
  int64_t max_position_embeddings = 0;           // likewise

  nlohmann::json document;  // config.json as read
};

// Reads FOLDER/config.json.
ModelConfig ReadModelConfig(const std::string& folder);
// `where` opens every message: the path of the file.
ModelConfig ParseModelConfig(const nlohmann::json& document, const std::string& where);

// Applies the job's `rope` and context_length. The factor multiplies what the model already has; absent, it is
// context_length over the original length if that is above 1. max_position_embeddings becomes context_length where that
// is more. SpecError for a kind that is not built yet, naming it.
ModelConfig WithJobRope(ModelConfig config, const jobfile::JobSpec& spec);

// config.json of the exported model: everything of the original, with the extended positions as legacy `rope_scaling`
// and `rope_theta`, which transformers 4 and 5 both read, and the new max_position_embeddings.
nlohmann::json ExportedConfigDocument(const ModelConfig& config);

}  // namespace longspan::trainer
