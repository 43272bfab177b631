// With which tokens a model ends a text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "worker/model_config/model_config.h"

namespace longspan::trainer {

// eos_token_id of FOLDER/generation_config.json, one or several; without that, of config.json; else none. UserError
// when generation_config.json is no JSON object or its eos_token_id is no id.
std::vector<int64_t> EndTokensOf(const std::filesystem::path& folder, const ModelConfig& config);

}  // namespace longspan::trainer
