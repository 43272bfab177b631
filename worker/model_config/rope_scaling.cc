#include "worker/model_config/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "worker/model_config/config_keys.h"

namespace longspan::trainer {
namespace {

using nlohmann::json;

constexpr std::pair<RopeScalingKind, std::string_view> kKinds[] = {{RopeScalingKind::kDefault, "default"},
                                                                   {RopeScalingKind::kLinear, "linear"},
                                                                   {RopeScalingKind::kDynamic, "dynamic"},
                                                                   {RopeScalingKind::kYarn, "yarn"},
                                                                   {RopeScalingKind::kLlama3, "llama3"}};
constexpr char kOriginalLength[] = "original_max_position_embeddings";

// The scaling's kind under its new name or its old one.
RopeScalingKind ReadKind(const KeyReader& section) {
  const char* key = section.Find("rope_type") != nullptr ? "rope_type" : "type";
  const std::string name = section.String(key, "default");
  for (const auto& [kind, known] : kKinds) {
    if (name == known) return kind;
  }
  section.Fail(key, "\"" + name + "\" is not supported; default, linear, dynamic, yarn and llama3 are");
}

void ReadYarn(const KeyReader& section, bool factor_is_null, int64_t max_position_embeddings, RopeParameters* rope) {
  rope->beta_fast = section.PositiveNumber("beta_fast", 32.0);
  rope->beta_slow = section.PositiveNumber("beta_slow", 1.0);
  rope->attention_factor = section.OptionalPositiveNumber("attention_factor");
  // Zero says the same as nothing, as in transformers.
  for (const auto& [key, member] :
       {std::pair{"mscale", &rope->mscale}, std::pair{"mscale_all_dim", &rope->mscale_all_dim}}) {
    const json* value = section.Find(key);
    if (value != nullptr && *value != 0) *member = section.PositiveNumber(key);
  }
  rope->truncate = section.Boolean("truncate", true);
  if (factor_is_null) {
    rope->factor = static_cast<double>(max_position_embeddings) / static_cast<double>(rope->original_length);
  }
}

void ReadLlama3(const KeyReader& section, RopeParameters* rope) {
  rope->low_freq_factor = section.PositiveNumber("low_freq_factor");
  rope->high_freq_factor = section.PositiveNumber("high_freq_factor");
  if (rope->high_freq_factor <= rope->low_freq_factor) {
    section.Fail("high_freq_factor",
                 fmt::format("{} must be above low_freq_factor {}", rope->high_freq_factor, rope->low_freq_factor));
  }
}

void ReadSection(const KeyReader& keys, const json& document, const std::string& where, const char* name,
                 int64_t max_position_embeddings, RopeParameters* rope) {
  for (const auto& [key, value] : document.items()) {
    if (value.is_object())
      keys.Fail(std::string(name) + "." + key, "is a section: positions by layer are not supported");
  }
  const KeyReader section(document, where, std::string(name) + ".");
  rope->kind = ReadKind(section);
  rope->theta = section.PositiveNumber("rope_theta", rope->theta);
  rope->partial_rotary_factor = section.PositiveNumber("partial_rotary_factor", rope->partial_rotary_factor);
  if (rope->kind == RopeScalingKind::kDefault) return;

  // Beside the section it counts more than inside, as in transformers.
  const KeyReader& stated = keys.Find(kOriginalLength) != nullptr ? keys : section;
  const bool linear = rope->kind == RopeScalingKind::kLinear;
  rope->original_length = stated.PositiveInteger(kOriginalLength, linear ? 0 : max_position_embeddings);
  if (rope->kind == RopeScalingKind::kDynamic) rope->original_length = max_position_embeddings;

  const bool factor_is_null =
      rope->kind == RopeScalingKind::kYarn && document.contains("factor") && document["factor"].is_null();
  if (!factor_is_null) rope->factor = section.PositiveNumber("factor");
  if (linear && rope->factor == 1) rope->kind = RopeScalingKind::kDefault;
  if (rope->kind == RopeScalingKind::kYarn) ReadYarn(section, factor_is_null, max_position_embeddings, rope);
  if (rope->kind == RopeScalingKind::kLlama3) ReadLlama3(section, rope);
}

// What no kind can compute with.
void CheckComputable(const KeyReader& keys, const RopeParameters& rope, int64_t head_dim, const RopeKeys& names) {
  if (rope.partial_rotary_factor > 1) {
    keys.Fail(names.partial_rotary_factor, fmt::format("{} is more than the whole head", rope.partial_rotary_factor));
  }
  const int64_t dims = RotaryDims(rope, head_dim);
  if (dims < 2 || dims % 2 != 0) {
    keys.Fail("head_dim", fmt::format("{} gives {} rotary dimensions, which must be even", head_dim, dims));
  }
  if (rope.kind == RopeScalingKind::kDynamic && dims <= 2) {
    keys.Fail("head_dim",
              fmt::format("{} gives {} rotary dimensions; dynamic scaling needs more than 2", head_dim, dims));
  }
  if (rope.kind == RopeScalingKind::kYarn && rope.theta <= 1) {
    keys.Fail(names.theta, fmt::format("{} must be above 1 for yarn scaling", rope.theta));
  }
}

json YarnSection(const RopeParameters& rope) {
  json section = {{"beta_fast", rope.beta_fast}, {"beta_slow", rope.beta_slow}};
  if (rope.attention_factor) section["attention_factor"] = *rope.attention_factor;
  if (rope.mscale) section["mscale"] = *rope.mscale;
  if (rope.mscale_all_dim) section["mscale_all_dim"] = *rope.mscale_all_dim;
  if (!rope.truncate) section["truncate"] = false;
  return section;
}

json LegacySection(const RopeParameters& rope) {
  if (rope.kind == RopeScalingKind::kDefault) return nullptr;
  json section = {{"type", NameOf(rope.kind)}, {"factor", rope.factor}};
  if (rope.kind == RopeScalingKind::kYarn) section.update(YarnSection(rope));
  if (rope.kind == RopeScalingKind::kLlama3) {
    section["low_freq_factor"] = rope.low_freq_factor;
    section["high_freq_factor"] = rope.high_freq_factor;
    section[kOriginalLength] = rope.original_length;
  }
  const bool old_readers = rope.kind == RopeScalingKind::kLinear || rope.kind == RopeScalingKind::kDynamic;
  if (!old_readers) section["rope_type"] = section["type"];
  return section;
}

}  // namespace

std::string_view NameOf(RopeScalingKind kind) {
  for (const auto& [candidate, name] : kKinds) {
    if (candidate == kind) return name;
  }
  return "?";
}

bool SamePositions(const RopeParameters& a, const RopeParameters& b) {
  if (a.kind != b.kind || a.theta != b.theta || a.partial_rotary_factor != b.partial_rotary_factor) return false;
  if (a.kind == RopeScalingKind::kDefault) return true;
  if (a.factor != b.factor) return false;
  if (a.kind == RopeScalingKind::kLinear) return true;
  if (a.original_length != b.original_length) return false;
  if (a.kind == RopeScalingKind::kYarn) {
    return a.beta_fast == b.beta_fast && a.beta_slow == b.beta_slow && a.attention_factor == b.attention_factor &&
           a.mscale == b.mscale && a.mscale_all_dim == b.mscale_all_dim && a.truncate == b.truncate;
  }
  if (a.kind == RopeScalingKind::kLlama3) {
    return a.low_freq_factor == b.low_freq_factor && a.high_freq_factor == b.high_freq_factor;
  }
  return true;
}

int64_t RotaryDims(const RopeParameters& rope, int64_t head_dim) {
  return static_cast<int64_t>(static_cast<double>(head_dim) * rope.partial_rotary_factor);
}

RopeParameters ReadRopeParameters(const json& document, const std::string& where, int64_t max_position_embeddings,
                                  int64_t head_dim, const RopeKeys& names) {
  const KeyReader keys(document, where);
  RopeParameters rope;
  rope.theta = keys.PositiveNumber(names.theta, names.theta_default);
  rope.partial_rotary_factor = keys.PositiveNumber(names.partial_rotary_factor, names.partial_rotary_factor_default);
  // With both sections, the older one counts when it says anything, as in transformers.
  const json* legacy = keys.Find("rope_scaling");
  const char* name = legacy != nullptr && !legacy->empty() ? "rope_scaling" : "rope_parameters";
  if (const json* section = keys.Find(name)) {
    if (!section->is_object()) keys.Fail(name, "must be an object, not " + section->dump());
    ReadSection(keys, *section, where, name, max_position_embeddings, &rope);
  }
  CheckComputable(keys, rope, head_dim, names);
  return rope;
}

int64_t ReachOf(const RopeParameters& rope, int64_t max_position_embeddings) {
  const bool counts_from_original = rope.kind == RopeScalingKind::kDynamic || rope.kind == RopeScalingKind::kYarn ||
                                    rope.kind == RopeScalingKind::kLinear;
  if (!counts_from_original || rope.original_length == 0) return max_position_embeddings;
  constexpr double kTokensMax = 1e15;
  const double reach = std::min(kTokensMax, static_cast<double>(rope.original_length) * rope.factor);
  return std::max(max_position_embeddings, static_cast<int64_t>(std::llround(reach)));
}

void WriteRopeParameters(const RopeParameters& rope, int64_t max_position_embeddings, json* document,
                         const RopeKeys& names) {
  json& config = *document;
  config.erase("rope_parameters");
  config[names.theta] = rope.theta;
  if (rope.partial_rotary_factor != names.partial_rotary_factor_default ||
      config.contains(names.partial_rotary_factor)) {
    config[names.partial_rotary_factor] = rope.partial_rotary_factor;
  }
  config["rope_scaling"] = LegacySection(rope);
  config["max_position_embeddings"] = max_position_embeddings;
  if (rope.kind != RopeScalingKind::kDefault) config.erase(kOriginalLength);
  if (rope.kind == RopeScalingKind::kDynamic || rope.kind == RopeScalingKind::kYarn) {
    config["max_position_embeddings"] = rope.original_length;
  }
  if (rope.kind == RopeScalingKind::kLinear && rope.original_length > 0) config[kOriginalLength] = rope.original_length;
}

json RopeDocument(const RopeParameters& rope) {
  json document = {{"kind", NameOf(rope.kind)}, {"theta", rope.theta}};
  if (rope.partial_rotary_factor != 1) document["partial_rotary_factor"] = rope.partial_rotary_factor;
  if (rope.kind == RopeScalingKind::kDefault) return document;
  document["factor"] = rope.factor;
  if (rope.original_length > 0) document["original_length"] = rope.original_length;
  if (rope.kind == RopeScalingKind::kYarn) document.update(YarnSection(rope));
  if (rope.kind == RopeScalingKind::kLlama3) {
    document["low_freq_factor"] = rope.low_freq_factor;
    document["high_freq_factor"] = rope.high_freq_factor;
  }
  return document;
}

}  // namespace longspan::trainer
