#include "worker/model_config/adapter_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

using json = nlohmann::ordered_json;  // of two keys of a pattern that match, the first counts

bool IsEmpty(const json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         ((value.is_object() || value.is_array()) && value.empty());
}

// Variants of LoRA that change what A and B mean.
void RefuseVariants(const json& document, const std::string& path) {
  for (const char* key :
       {"use_dora", "fan_in_fan_out", "layers_to_transform", "layers_pattern", "lora_bias", "layer_replication",
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

bool IsPlainName(const std::string& key) {
  return !key.empty() && std::all_of(key.begin(), key.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.';
  });
}

template <class T, class IsValue>
ModulePattern<T> ReadPattern(const json& document, const char* name, const char* wanted, const std::string& path,
                             IsValue is_value) {
  ModulePattern<T> pattern;
  const auto found = document.find(name);
  if (found == document.end() || found->is_null()) return pattern;
  if (!found->is_object())
    throw UserError(fmt::format("cannot read {}: {} must be a map of module names to {}", path, name, wanted));
  for (const auto& [key, value] : found->items()) {
    if (!IsPlainName(key)) {
      throw UserError(fmt::format(
          "cannot use {}: the key {} of {} is a regular expression; only ends of module names are supported", path,
          json(key).dump(-1, ' ', false, json::error_handler_t::replace), name));
    }
    if (!is_value(value)) {
      throw UserError(
          fmt::format("cannot read {}: {} of {} is {}; it must be {}", path, key, name, value.dump(), wanted));
    }
    pattern.emplace_back(key, value.template get<T>());
  }
  return pattern;
}

bool IsRank(const json& value) { return value.is_number_integer() && value.get<int64_t>() >= 1; }

std::vector<std::string> ReadTargets(const json& document, const std::string& path) {
  const auto found = document.find("target_modules");
  const bool is_list = found != document.end() && found->is_array() && !found->empty() &&
                       std::all_of(found->begin(), found->end(), [](const json& item) { return item.is_string(); });
  if (!is_list) throw UserError("cannot use " + path + ": target_modules must be a list of module names");
  std::vector<std::string> targets;
  for (const json& item : *found) {
    const std::string name = item;
    if (std::find(targets.begin(), targets.end(), name) == targets.end()) targets.push_back(name);
  }
  return targets;
}

}  // namespace

AdapterFolder ReadAdapterFolder(const std::string& folder) {
  AdapterFolder adapter;
  const std::string& path = adapter.config_path = folder + "/adapter_config.json";
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
  const json rank = document.value("r", json());
  const json alpha = document.value("lora_alpha", json());
  const json rslora = document.value("use_rslora", json(false));
  if (!IsRank(rank)) throw UserError("cannot read " + path + ": r must be a whole number of at least 1");
  if (!alpha.is_number()) throw UserError("cannot read " + path + ": lora_alpha must be a number");
  if (!rslora.is_boolean()) throw UserError("cannot read " + path + ": use_rslora must be true or false");
  adapter.rank = rank;
  adapter.alpha = alpha;
  adapter.rslora = rslora;
  adapter.rank_pattern = ReadPattern<int64_t>(document, "rank_pattern", "whole numbers of at least 1", path, IsRank);
  adapter.alpha_pattern = ReadPattern<double>(document, "alpha_pattern", "numbers", path,
                                              [](const json& value) { return value.is_number(); });
  adapter.targets = ReadTargets(document, path);
  return adapter;
}

}  // namespace longspan::trainer
