#include "worker/trainer/model/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "worker/trainer/model/config_keys.h"
#include "worker/trainer/model/rope_extension.h"

namespace longspan::trainer {
namespace {

using nlohmann::json;

at::ScalarType ReadDtype(const KeyReader& keys) {
  const char* key = keys.Find("dtype") != nullptr ? "dtype" : "torch_dtype";
  const std::string name = keys.String(key, "float32");
  if (name == "float32" || name == "auto") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  keys.Fail(key, fmt::format("\"{}\" is not supported; float32, bfloat16 and float16 are", name));
}

void CheckArchitecture(ModelConfig& config, const KeyReader& keys) {
  const json* architectures = keys.Find("architectures");
  if (architectures != nullptr && architectures->is_array() && architectures->size() == 1 &&
      (*architectures)[0].is_string()) {
    config.architecture = (*architectures)[0].get<std::string>();
  } else if (architectures == nullptr && keys.String("model_type", "") == "llama") {
    config.architecture = "LlamaForCausalLM";  // a hand-written config.json may have the type alone
  } else {
    keys.Fail("architectures", "must name one architecture, such as [\"LlamaForCausalLM\"]");
  }
  if (config.architecture != "LlamaForCausalLM") {
    keys.Fail("architectures",
              fmt::format("has \"{}\", which is not supported yet; LlamaForCausalLM is", config.architecture));
  }
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (keys.Boolean(key, false)) keys.Fail(key, "true is not supported yet");
  }
  const std::string activation = keys.String("hidden_act", "silu");
  if (activation != "silu") keys.Fail("hidden_act", fmt::format("\"{}\" is not supported; silu is", activation));
}

void CheckHeads(const ModelConfig& config, const KeyReader& keys) {
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    keys.Fail("num_key_value_heads", fmt::format("{} does not divide num_attention_heads {}",
                                                 config.num_key_value_heads, config.num_attention_heads));
  }
}

}  // namespace

ModelConfig ParseModelConfig(const json& document, const std::string& where) {
  if (!document.is_object()) throw UserError("cannot read " + where + ": it is not a JSON object");
  const KeyReader keys(document, where);
  ModelConfig config;
  CheckArchitecture(config, keys);
  config.hidden_size = keys.PositiveInteger("hidden_size");
  config.intermediate_size = keys.PositiveInteger("intermediate_size");
  config.num_hidden_layers = keys.PositiveInteger("num_hidden_layers");
  config.num_attention_heads = keys.PositiveInteger("num_attention_heads");
  config.num_key_value_heads = keys.PositiveInteger("num_key_value_heads", config.num_attention_heads);
  if (keys.Find("head_dim") == nullptr && config.hidden_size % config.num_attention_heads != 0) {
    keys.Fail("hidden_size", fmt::format("{} is not divisible by num_attention_heads {}, and there is no head_dim",
                                         config.hidden_size, config.num_attention_heads));
  }
  config.head_dim = keys.PositiveInteger("head_dim", config.hidden_size / config.num_attention_heads);
  CheckHeads(config, keys);
  config.vocab_size = keys.PositiveInteger("vocab_size");
  config.rms_norm_eps = keys.PositiveNumber("rms_norm_eps", 1e-6);
  config.initializer_range = keys.PositiveNumber("initializer_range", 0.02);
  config.tie_word_embeddings = keys.Boolean("tie_word_embeddings", false);
  config.dtype = ReadDtype(keys);
  const auto bos = keys.TokenIds("bos_token_id");
  if (!bos.empty()) config.bos_token_id = bos.front();
  config.eos_token_ids = keys.TokenIds("eos_token_id");
  const int64_t positions = keys.PositiveInteger("max_position_embeddings", 2048);  // transformers' default for Llama
  config.original_rope = config.rope = ReadRopeParameters(document, where, positions, config.head_dim);
  if (config.rope.partial_rotary_factor != 1) {
    keys.Fail("partial_rotary_factor", fmt::format("{} is not supported", config.rope.partial_rotary_factor));
  }
  config.original_max_position_embeddings = config.max_position_embeddings = ReachOf(config.rope, positions);
  config.document = document;
  return config;
}

ModelConfig ReadModelConfig(const std::string& folder) {
  const std::string path = folder + "/config.json";
  std::ifstream in(path, std::ios::binary);
  if (!in)
    throw UserError(
        fmt::format("cannot open {}: {}; model.path must be a Hugging Face folder", path, std::strerror(errno)));
  const json document = json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) throw UserError("cannot read " + path + ": it is not JSON");
  return ParseModelConfig(document, path);
}

ModelConfig WithJobRope(ModelConfig config, const jobfile::JobSpec& spec) {
  config.rope = ExtendRope(config.original_rope, config.original_max_position_embeddings,
                           RotaryDims(config.original_rope, config.head_dim), spec);
  config.max_position_embeddings = std::max(config.original_max_position_embeddings, spec.context_length);
  return config;
}

json ExportedConfigDocument(const ModelConfig& config) {
  json document = config.document;
  WriteRopeParameters(config.rope, config.max_position_embeddings, &document);
  // transformers 4 knows only the older name.
  if (document.contains("dtype") && !document.contains("torch_dtype")) document["torch_dtype"] = document["dtype"];
  if (!document.contains("architectures")) document["architectures"] = {config.architecture};
  return document;
}

}  // namespace longspan::trainer
