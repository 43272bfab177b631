#include "worker/model_config/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "worker/model_config/config_keys.h"
#include "worker/model_config/rope_extension.h"

namespace longspan::trainer {
namespace {

using nlohmann::json;

constexpr int64_t kLayersMax = 10000;  // far beyond any model; what is kept by layer stays small

WeightDtype ReadDtype(const KeyReader& keys) {
  const char* key = keys.Find("dtype") != nullptr ? "dtype" : "torch_dtype";
  const std::string name = keys.String(key, "float32");
  if (name == "float32" || name == "auto") return WeightDtype::kFp32;
  if (name == "bfloat16") return WeightDtype::kBf16;
  if (name == "float16") return WeightDtype::kFp16;
  keys.Fail(key, fmt::format("\"{}\" is not supported; float32, bfloat16 and float16 are", name));
}

const ModelFamily* ReadFamily(const KeyReader& keys) {
  const json* architectures = keys.Find("architectures");
  const std::string model_type = keys.String("model_type", "");
  const ModelFamily* family = nullptr;
  if (architectures != nullptr && architectures->is_array() && architectures->size() == 1 &&
      (*architectures)[0].is_string()) {
    const auto name = (*architectures)[0].get<std::string>();
    family = FindFamilyByArchitecture(name);
    if (family == nullptr) {
      keys.Fail("architectures", fmt::format("has \"{}\", which is not supported; {} are", name, KnownArchitectures()));
    }
  } else if (architectures == nullptr && !model_type.empty()) {  // a hand-written config.json may have the type alone
    family = FindFamilyByModelType(model_type);
    if (family == nullptr) {
      keys.Fail("model_type",
                fmt::format("\"{}\" is not supported; those of {} are", model_type, KnownArchitectures()));
    }
  } else {
    keys.Fail("architectures", "must name one architecture, such as [\"LlamaForCausalLM\"]");
  }
  return family;
}

bool HasBias(const KeyReader& keys, BiasRule rule, const char* key) {
  switch (rule) {
    case BiasRule::kNever:
      return false;
    case BiasRule::kAlways:
      return true;
    case BiasRule::kIfAsked:
      return keys.Boolean(key, false);
    case BiasRule::kUnlessRefused:
      return keys.Boolean(key, true);
  }
  return false;
}

LinearBiases ReadBiases(const ModelFamily& family, const KeyReader& keys) {
  LinearBiases biases;
  biases.query_key_value = HasBias(keys, family.query_key_value_bias, "attention_bias");
  biases.output = HasBias(keys, family.output_bias, "attention_bias");
  biases.mlp = HasBias(keys, family.mlp_bias, "mlp_bias");
  return biases;
}

Activation ReadActivation(const ModelFamily& family, const KeyReader& keys) {
  const std::string name = keys.String("hidden_act", family.has_gate() ? "silu" : "gelu");
  if (family.has_gate()) {
    if (name == "silu" || name == "swish") return Activation::kGatedSilu;
    keys.Fail("hidden_act", fmt::format("\"{}\" is not supported; silu is", name));
  }
  if (name == "gelu" || name == "gelu_python") return Activation::kGelu;
  // One formula, written in several ways.
  for (const char* other : {"gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"}) {
    if (name == other) return Activation::kGeluTanh;
  }
  keys.Fail("hidden_act", fmt::format("\"{}\" is not supported; gelu and its tanh approximations are", name));
}

// Which layers have the window: as layer_types says, else those from max_window_layers on.
std::vector<bool> WindowedLayers(const KeyReader& keys, int64_t layers) {
  std::vector<bool> windowed(static_cast<size_t>(layers));
  const json* types = keys.Find("layer_types");
  if (types == nullptr) {
    const int64_t first = keys.WholeNumber("max_window_layers", 28);
    for (int64_t layer = first; layer < layers; ++layer) windowed[static_cast<size_t>(layer)] = true;
    return windowed;
  }
  if (!types->is_array() || types->size() != windowed.size()) {
    keys.Fail("layer_types", fmt::format("must name the attention of each of the {} layers", layers));
  }
  for (size_t layer = 0; layer < windowed.size(); ++layer) {
    const json& type = (*types)[layer];
    if (type != "full_attention" && type != "sliding_attention") {
      keys.Fail("layer_types", "has " + type.dump() + "; only full_attention and sliding_attention are supported");
    }
    windowed[layer] = type == "sliding_attention";
  }
  return windowed;
}

// By layer; the defaults are transformers'.
std::vector<int64_t> ReadWindows(const ModelFamily& family, const KeyReader& keys, int64_t layers) {
  std::vector<int64_t> windows(static_cast<size_t>(layers), 0);
  if (family.window == WindowRule::kNone || keys.IsNull("sliding_window")) return windows;
  if (family.window == WindowRule::kUpperLayers && !keys.Boolean("use_sliding_window", false)) return windows;
  const int64_t window = keys.PositiveInteger("sliding_window", 4096);
  if (family.window == WindowRule::kEveryLayer) return std::vector<int64_t>(windows.size(), window);
  const std::vector<bool> windowed = WindowedLayers(keys, layers);
  for (size_t layer = 0; layer < windows.size(); ++layer) windows[layer] = windowed[layer] ? window : 0;
  return windows;
}

int64_t ReadKeyValueHeads(const ModelFamily& family, const KeyReader& keys, int64_t heads) {
  if (family.fuses_query_key_value()) return heads;  // there is no such key
  // Null always means as many as query heads; what an absent key means differs between families.
  if (family.key_value_heads_are_heads || keys.IsNull("num_key_value_heads")) {
    return keys.PositiveInteger("num_key_value_heads", heads);
  }
  return keys.PositiveInteger("num_key_value_heads");
}

int64_t ReadHeadDim(const ModelConfig& config, const KeyReader& keys) {
  const int64_t of_family = config.family->head_dim;
  if (keys.Find("head_dim") == nullptr && of_family == 0 && config.hidden_size % config.num_attention_heads != 0) {
    keys.Fail("hidden_size", fmt::format("{} is not divisible by num_attention_heads {}, and there is no head_dim",
                                         config.hidden_size, config.num_attention_heads));
  }
  const int64_t fallback = of_family > 0 ? of_family : config.hidden_size / config.num_attention_heads;
  const int64_t head_dim = keys.PositiveInteger("head_dim", fallback);
  if (config.family->fuses_query_key_value() && head_dim != fallback) {
    keys.Fail("head_dim", fmt::format("{} is not hidden_size over num_attention_heads, {}", head_dim, fallback));
  }
  return head_dim;
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
  config.family = ReadFamily(keys);
  config.biases = ReadBiases(*config.family, keys);
  config.hidden_size = keys.PositiveInteger("hidden_size");
  config.intermediate_size = keys.PositiveInteger("intermediate_size");
  config.num_hidden_layers = keys.PositiveInteger("num_hidden_layers");
  if (config.num_hidden_layers > kLayersMax) {
    keys.Fail("num_hidden_layers", fmt::format("{} is more than {}", config.num_hidden_layers, kLayersMax));
  }
  config.num_attention_heads = keys.PositiveInteger("num_attention_heads");
  config.num_key_value_heads = ReadKeyValueHeads(*config.family, keys, config.num_attention_heads);
  config.head_dim = ReadHeadDim(config, keys);
  CheckHeads(config, keys);
  config.vocab_size = keys.PositiveInteger("vocab_size");
  config.norm_epsilon = keys.PositiveNumber(config.family->norm_epsilon_key.c_str(), config.family->norm_epsilon);
  config.activation = ReadActivation(*config.family, keys);
  config.parallel_residual = config.family->may_be_parallel && keys.Boolean("use_parallel_residual", true);
  config.initializer_range = keys.PositiveNumber("initializer_range", 0.02);
  config.layer_windows = ReadWindows(*config.family, keys, config.num_hidden_layers);
  config.tie_word_embeddings = keys.Boolean("tie_word_embeddings", false);
  if (config.tie_word_embeddings && !config.family->may_tie) {
    keys.Fail("tie_word_embeddings", "true is not supported for " + config.family->architecture);
  }
  config.dtype = ReadDtype(keys);
  const auto bos = keys.TokenIds("bos_token_id");
  if (!bos.empty()) config.bos_token_id = bos.front();
  config.eos_token_ids = keys.TokenIds("eos_token_id");
  const int64_t positions = keys.PositiveInteger("max_position_embeddings", config.family->max_position_embeddings);
  config.original_rope = config.rope =
      ReadRopeParameters(document, where, positions, config.head_dim, config.family->rope_keys);
  if (config.rope.partial_rotary_factor != 1 && !config.family->may_turn_a_part) {
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

ModelConfig WithJobWindow(ModelConfig config, const jobfile::JobSpec& spec) {
  config.window_outgrown = std::any_of(config.layer_windows.begin(), config.layer_windows.end(),
                                       [&spec](int64_t window) { return window > 0 && window < spec.context_length; });
  return config;
}

json ExportedConfigDocument(const ModelConfig& config) {
  json document = config.document;
  WriteRopeParameters(config.rope, config.max_position_embeddings, &document, config.family->rope_keys);
  if (config.window_outgrown) {
    document["sliding_window"] = nullptr;
    if (config.family->window == WindowRule::kUpperLayers) document["use_sliding_window"] = false;
    document.erase("layer_types");  // else they would ask for the window that is no longer there
  }
  // transformers 4 knows only the older name.
  if (document.contains("dtype") && !document.contains("torch_dtype")) document["torch_dtype"] = document["dtype"];
  if (!document.contains("architectures")) document["architectures"] = {config.family->architecture};
  return document;
}

}  // namespace longspan::trainer
