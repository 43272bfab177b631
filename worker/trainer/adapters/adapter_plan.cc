#include "worker/trainer/adapters/adapter_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

namespace longspan::trainer {
namespace {

using nlohmann::json;

// What adapter_config.json says, checked to be plain LoRA.
struct AdapterFolder {
  int64_t rank = 0;
  double alpha = 0;
  std::vector<std::string> targets;
};

std::vector<std::string> InModelOrder(const std::set<std::string>& names) {
  std::vector<std::string> ordered;
  for (const std::string& module : AdaptableModules()) {
    if (names.count(module) != 0) ordered.push_back(module);
  }
  return ordered;
}

bool IsEmpty(const json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         ((value.is_object() || value.is_array()) && value.empty());
}

// Variants of LoRA that change what A and B mean.
void RefuseVariants(const json& document, const std::string& path) {
  for (const char* key : {"use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
                          "layers_to_transform", "layers_pattern", "lora_bias", "layer_replication",
                          "target_parameters", "exclude_modules", "trainable_token_indices", "modules_to_tie"}) {
    const auto found = document.find(key);
    if (found != document.end() && !IsEmpty(*found)) {
      throw UserError(fmt::format("cannot use {}: {} is {}, which is not supported", path, key, found->dump()));
    }
  }
  const auto bias = document.find("bias");
  if (bias != document.end() && *bias != "none") {
    throw UserError(fmt::format("cannot use {}: bias is {}, only \"none\" is supported", path, bias->dump()));
  }
}

AdapterFolder ReadAdapterFolder(const std::string& folder) {
  const std::string path = folder + "/adapter_config.json";
  std::ifstream in(path, std::ios::binary);
  if (!in)
    throw UserError(
        fmt::format("cannot open {}: {}; method.adapter must be a PEFT folder", path, std::strerror(errno)));
  const json document = json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) throw UserError("cannot read " + path + ": it is not a JSON object");
  if (document.value("peft_type", json("")) != "LORA") {
    throw UserError(fmt::format("cannot use {}: peft_type is {}, only LORA is supported", path,
                                document.value("peft_type", json(nullptr)).dump()));
  }
  RefuseVariants(document, path);
  AdapterFolder adapter;
  const auto rank = document.find("r");
  const auto alpha = document.find("lora_alpha");
  const auto targets = document.find("target_modules");
  if (rank == document.end() || !rank->is_number_integer() || rank->get<int64_t>() < 1) {
    throw UserError("cannot read " + path + ": r must be a whole number of at least 1");
  }
  if (alpha == document.end() || !alpha->is_number())
    throw UserError("cannot read " + path + ": lora_alpha must be a number");
  if (targets == document.end() || !targets->is_array()) {
    throw UserError("cannot use " + path + ": target_modules must be a list of module names");
  }
  adapter.rank = *rank;
  adapter.alpha = *alpha;
  std::set<std::string> names;
  for (const json& target : *targets) {
    const auto& known = AdaptableModules();
    if (!target.is_string() || std::find(known.begin(), known.end(), target.get<std::string>()) == known.end()) {
      throw UserError(
          fmt::format("cannot use {}: target module {} is not one of {}", path, target.dump(), fmt::join(known, ", ")));
    }
    names.insert(target.get<std::string>());
  }
  adapter.targets = InModelOrder(names);
  return adapter;
}

std::vector<std::string> CheckedTargets(const std::vector<std::string>& targets) {
  std::set<std::string> names;
  const auto& known = AdaptableModules();
  for (const std::string& target : targets) {
    if (std::find(known.begin(), known.end(), target) == known.end()) {
      throw SpecError(fmt::format("method.targets: \"{}\" matches no linear layer of the model; known are {}", target,
                                  fmt::join(known, ", ")));
    }
    names.insert(target);
  }
  return InModelOrder(names);
}

void CheckAgreement(const jobfile::MethodSection& method, const AdapterPlan& plan, const AdapterFolder& adapter) {
  const std::string where = method.adapter + "/adapter_config.json";
  if (method.rank && *method.rank != adapter.rank) {
    throw SpecError(fmt::format("method.rank: {} disagrees with r {} of {}; leave it out to take the adapter's",
                                *method.rank, adapter.rank, where));
  }
  if (method.alpha && *method.alpha != adapter.alpha) {
    throw SpecError(
        fmt::format("method.alpha: {} disagrees with lora_alpha {} of {}; leave it out to take the adapter's",
                    *method.alpha, adapter.alpha, where));
  }
  if (!method.targets.empty() && plan.targets != adapter.targets) {
    throw SpecError(
        fmt::format("method.targets: {} disagree with target_modules {} of {}; leave them out to take the adapter's",
                    fmt::join(plan.targets, ", "), fmt::join(adapter.targets, ", "), where));
  }
}

}  // namespace

const std::vector<std::string>& AdaptableModules() {
  static const std::vector<std::string> kModules = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                    "gate_proj", "up_proj", "down_proj"};
  return kModules;
}

bool AdapterPlan::Targets(const std::string& module) const {
  return has_lora && std::find(targets.begin(), targets.end(), module) != targets.end();
}

AdapterPlan ResolveAdapterPlan(const jobfile::JobSpec& spec) {
  const jobfile::MethodSection& method = spec.method;
  AdapterPlan plan;
  switch (method.kind) {
    case jobfile::MethodKind::kFull:
      if (!method.adapter.empty()) throw SpecError("method.adapter: method full has no adapter to start from");
      plan.trains_base = plan.trains_embedding = plan.trains_norms = true;
      return plan;
    case jobfile::MethodKind::kLora:
      break;
    case jobfile::MethodKind::kLongLora:
      plan.trains_embedding = plan.trains_norms = true;
      break;
    case jobfile::MethodKind::kQlora:
    case jobfile::MethodKind::kQlongLora:
      throw SpecError("method.kind: qlora and qlonglora are not built yet");
  }
  plan.has_lora = true;
  plan.dropout = method.dropout;
  plan.rank = method.rank.value_or(8);
  plan.alpha = method.alpha.value_or(16);
  plan.targets = CheckedTargets(
      method.targets.empty() ? std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj"} : method.targets);
  if (!method.adapter.empty()) {
    const AdapterFolder adapter = ReadAdapterFolder(method.adapter);
    CheckAgreement(method, plan, adapter);
    plan.rank = adapter.rank;
    plan.alpha = adapter.alpha;
    plan.targets = adapter.targets;
  }
  return plan;
}

SafetensorsFile OpenAdapterWeights(const std::string& folder) {
  return SafetensorsFile::Open(folder + "/adapter_model.safetensors");
}

}  // namespace longspan::trainer
