#include "worker/trainer/generate/end_tokens.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "worker/trainer/errors.h"

namespace longspan::trainer {

std::vector<int64_t> EndTokensOf(const std::filesystem::path& folder, const ModelConfig& config) {
  const std::filesystem::path path = folder / "generation_config.json";
  std::ifstream file(path);
  if (!file) return config.eos_token_ids;
  const nlohmann::json document = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) throw UserError("cannot read " + path.string() + ": it is no JSON object");
  const auto found = document.find("eos_token_id");
  if (found == document.end() || found->is_null()) return config.eos_token_ids;
  std::vector<int64_t> ids;
  for (const nlohmann::json& id : found->is_array() ? *found : nlohmann::json::array({*found})) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0) {
      throw UserError("cannot use " + path.string() + ": eos_token_id is no token id, nor a list of them");
    }
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

}  // namespace longspan::trainer
