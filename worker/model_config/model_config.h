// A model folder's config.json, read and checked, and what a job's `rope` makes of it.
//
// Values; pure functions, thread-safe. UserError names the file and the key. Families that are not in model_family.h
// are refused by name, because running a model with the wrong parts looks like it works. Positions: rope_scaling.h,
// rope_extension.h.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/model_config/model_family.h"
#include "worker/model_config/rope_scaling.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {

// Which linear layers have a bias.
struct LinearBiases {
  bool query_key_value = false, output = false, mlp = false;
};

// Of the weights, as config.json says.
enum class WeightDtype { kFp32, kBf16, kFp16 };

struct ModelConfig {
  const ModelFamily* family = nullptr;  // never null in a config that was read; points into the static table
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;  // divides num_attention_heads
  int64_t head_dim = 0;
  LinearBiases biases;
  int64_t vocab_size = 0;
  double norm_epsilon = 1e-6;
  Activation activation = Activation::kGatedSilu;
  bool parallel_residual = false;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  WeightDtype dtype = WeightDtype::kFp32;  // `dtype` or `torch_dtype`; kFp32 when neither is given
  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;  // empty when config.json has none

  RopeParameters original_rope;                  // the folder's own
  int64_t original_max_position_embeddings = 0;  // tokens that the folder's own positions reach
  RopeParameters rope;                           // with the job's extension, after WithJobRope; else the folder's own
  int64_t max_position_embeddings = 0;           // likewise

  // Tokens that each layer attends to, itself among them, by the folder's own config; 0: all before it.
  std::vector<int64_t> layer_windows;
  bool window_outgrown = false;  // after WithJobWindow: the extended model has no window

  nlohmann::json document;  // config.json as read
};

// Reads FOLDER/config.json.
ModelConfig ReadModelConfig(const std::string& folder);
// `where` opens every message: the path of the file.
ModelConfig ParseModelConfig(const nlohmann::json& document, const std::string& where);

// Applies the job's `rope` (rope_extension.h). max_position_embeddings becomes context_length where that is more.
ModelConfig WithJobRope(ModelConfig config, const jobfile::JobSpec& spec);

// Training attends without a window, whatever its kind. While the job's context is not longer than any window, that is
// what the window allows anyway, and the extended model keeps it (for texts longer than the context). Where the context
// outgrows a window, the extended model was trained beyond it: it has none, in evaluation and in the exported config.
// The base is always evaluated with its own.
ModelConfig WithJobWindow(ModelConfig config, const jobfile::JobSpec& spec);

// config.json of the exported model: everything of the original, with the extended positions and the new length as
// transformers 4 and 5 both read them (WriteRopeParameters). An outgrown window is null.
nlohmann::json ExportedConfigDocument(const ModelConfig& config);

}  // namespace longspan::trainer
