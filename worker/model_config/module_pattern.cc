#include "worker/model_config/module_pattern.h"

namespace longspan::trainer {

bool MatchesModule(std::string_view key, std::string_view name) {
  if (key.empty() || key.size() > name.size()) return false;
  const size_t begin = name.size() - key.size();
  if (begin > 0 && name[begin - 1] != '.') return false;
  for (size_t i = 0; i < key.size(); ++i) {
    if (key[i] != '.' && key[i] != name[begin + i]) return false;
  }
  return true;
}

}  // namespace longspan::trainer
