#include "worker/trainer/model/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

namespace longspan::trainer {
namespace {

using nlohmann::json;

// Reads typed keys of config.json; every message opens with the file and names the key.
class KeyReader {
 public:
  KeyReader(const json& document, const std::string& where) : document_(document), where_(where) {}

  // A key that is null counts as absent, as in transformers.
  const json* Find(const char* key) const {
    const auto found = document_.find(key);
    return found == document_.end() || found->is_null() ? nullptr : &*found;
  }
  int64_t PositiveInteger(const char* key, std::optional<int64_t> fallback = std::nullopt) const {
    const json* value = Find(key);
    if (value == nullptr && fallback) return *fallback;
    if (value == nullptr) Fail(key, "is missing");
    if (!value->is_number_integer() || value->get<int64_t>() < 1 || value->get<int64_t>() > (int64_t{1} << 40)) {
      Fail(key, "must be a whole number of at least 1, not " + value->dump());
    }
    return value->get<int64_t>();
  }
  double PositiveNumber(const char* key, double fallback) const {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_number() || !(value->get<double>() > 0) || !std::isfinite(value->get<double>())) {
      Fail(key, "must be a number above 0, not " + value->dump());
    }
    return value->get<double>();
  }
  bool Boolean(const char* key, bool fallback) const {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) Fail(key, "must be true or false, not " + value->dump());
    return value->get<bool>();
  }
  std::string String(const char* key, const std::string& fallback) const {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_string()) Fail(key, "must be a string, not " + value->dump());
    return value->get<std::string>();
  }
  // One id or a list of them.
  std::vector<int64_t> TokenIds(const char* key) const {
    const json* value = Find(key);
    if (value == nullptr) return {};
    std::vector<int64_t> ids;
    for (const json& id : value->is_array() ? *value : json::array({*value})) {
      if (!id.is_number_integer()) Fail(key, "must be a token id or a list of them, not " + value->dump());
      if (id.get<int64_t>() >= 0) ids.push_back(id.get<int64_t>());
    }
    return ids;
  }
  [[noreturn]] void Fail(const std::string& key, const std::string& what) const {
    throw UserError(fmt::format("cannot read {}: {} {}", where_, key, what));
  }

 private:
  const json& document_;
  const std::string& where_;
};

at::ScalarType ReadDtype(const KeyReader& keys) {
  const char* key = keys.Find("dtype") != nullptr ? "dtype" : "torch_dtype";
  const std::string name = keys.String(key, "float32");
  if (name == "float32" || name == "auto") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  keys.Fail(key, fmt::format("\"{}\" is not supported; float32, bfloat16 and float16 are", name));
}

// The scaling's kind under its new name (rope_type) or its old one (type).
std::string RopeTypeName(const json& rope, const KeyReader& keys, const char* key) {
  for (const char* name : {"rope_type", "type"}) {
    const auto found = rope.find(name);
    if (found == rope.end() || found->is_null()) continue;
    if (!found->is_string()) keys.Fail(fmt::format("{}.{}", key, name), "must be a string, not " + found->dump());
    return found->get<std::string>();
  }
  return "default";
}

RopeParameters ReadRope(const KeyReader& keys) {
  RopeParameters rope;
  rope.theta = keys.PositiveNumber("rope_theta", 10000.0);
  // With both keys, the older one counts when it says anything, as in transformers 5.
  const json* legacy = keys.Find("rope_scaling");
  const char* key = legacy != nullptr && !legacy->empty() ? "rope_scaling" : "rope_parameters";
  const json* section = keys.Find(key);
  if (section == nullptr) return rope;
  if (!section->is_object()) keys.Fail(key, "must be an object, not " + section->dump());
  const std::string where = key;
  const KeyReader inner(*section, where);
  try {
    rope.theta = inner.PositiveNumber("rope_theta", rope.theta);
    if (inner.PositiveNumber("partial_rotary_factor", 1.0) != 1.0) {
      keys.Fail(where + ".partial_rotary_factor", "other than 1 is not supported");
    }
    const std::string type = RopeTypeName(*section, keys, key);
    if (type == "linear") {
      if (inner.Find("factor") == nullptr) keys.Fail(where + ".factor", "is missing, which linear scaling needs");
      rope.linear_factor = inner.PositiveNumber("factor", 1.0);
    } else if (type != "default") {
      keys.Fail(where, fmt::format("of type \"{}\" is not supported yet; default and linear are", type));
    }
  } catch (const UserError& error) {
    const std::string prefix = "cannot read " + where + ": ";  // thrown by `inner`, which does not know the file
    const std::string text = error.what();
    if (text.rfind(prefix, 0) != 0) throw;
    keys.Fail(where + "." + text.substr(prefix.size()), "");
  }
  return rope;
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
  if (config.head_dim % 2 != 0)
    keys.Fail("head_dim", fmt::format("{} is odd, which rotary positions cannot be", config.head_dim));
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
  config.original_rope = config.rope = ReadRope(keys);
  config.max_position_embeddings =
      keys.PositiveInteger("max_position_embeddings", 2048);  // transformers' default for Llama
  config.original_max_position_embeddings = config.max_position_embeddings;
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

namespace {

const char* RopeKindName(jobfile::RopeKind kind) {
  switch (kind) {
    case jobfile::RopeKind::kLinear:
      return "linear";
    case jobfile::RopeKind::kNtk:
      return "ntk";
    case jobfile::RopeKind::kDynamic:
      return "dynamic";
    case jobfile::RopeKind::kYarn:
      return "yarn";
    case jobfile::RopeKind::kLlama3:
      return "llama3";
    case jobfile::RopeKind::kTheta:
      return "theta";
  }
  return "unknown";
}

// What the job multiplies the model's own factor by.
double JobRopeFactor(const ModelConfig& config, const jobfile::JobSpec& spec) {
  if (spec.rope && spec.rope->factor) return *spec.rope->factor;
  const double target = static_cast<double>(spec.context_length);
  if (spec.rope && spec.rope->original_length) {
    // The length before any scaling: the model may have used up a part of the factor already.
    const double total = target / static_cast<double>(*spec.rope->original_length);
    return std::max(1.0, total / config.original_rope.linear_factor);
  }
  return std::max(1.0, target / static_cast<double>(config.original_max_position_embeddings));
}

}  // namespace

ModelConfig WithJobRope(ModelConfig config, const jobfile::JobSpec& spec) {
  if (spec.rope && spec.rope->kind != jobfile::RopeKind::kLinear) {
    throw SpecError(fmt::format("rope.kind: \"{}\" is not built yet; linear is", RopeKindName(spec.rope->kind)));
  }
  const double factor = JobRopeFactor(config, spec);
  if (!(factor > 0) || !std::isfinite(factor)) throw SpecError(fmt::format("rope.factor: {} must be above 0", factor));
  config.rope = config.original_rope;
  config.rope.linear_factor *= factor;
  config.max_position_embeddings = std::max(config.original_max_position_embeddings, spec.context_length);
  return config;
}

json ExportedConfigDocument(const ModelConfig& config) {
  json document = config.document;
  document.erase("rope_parameters");
  document["rope_theta"] = config.rope.theta;
  if (config.rope.linear_factor == 1) {
    document["rope_scaling"] = nullptr;
  } else {
    document["rope_scaling"] = {{"type", "linear"}, {"rope_type", "linear"}, {"factor", config.rope.linear_factor}};
  }
  document["max_position_embeddings"] = config.max_position_embeddings;
  // transformers 4 knows only the older name.
  if (document.contains("dtype") && !document.contains("torch_dtype")) document["torch_dtype"] = document["dtype"];
  if (!document.contains("architectures")) document["architectures"] = {config.architecture};
  return document;
}

}  // namespace longspan::trainer
