// A PEFT folder that a job starts from: what adapter_config.json says, checked to be LoRA as Longspan knows it.
//
// UserError for a folder that is wrong or that uses what Longspan does not, which it names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/model_config/module_pattern.h"

namespace longspan::trainer {

struct AdapterFolder {
  std::string config_path;  // of its adapter_config.json, for messages
  int64_t rank = 0;
  double alpha = 0;
  bool rslora = false;
  ModulePattern<int64_t> rank_pattern;  // in the order of the file
  ModulePattern<double> alpha_pattern;
  std::vector<std::string> targets;  // in the order of the file, each once
};

AdapterFolder ReadAdapterFolder(const std::string& folder);

}  // namespace longspan::trainer
