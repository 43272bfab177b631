// JSON files that earlier phases left in a job's folder.
#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace longspan::trainer {

// Null when the file is not there or is no JSON: it is made again then.
inline nlohmann::json ReadJsonOrNull(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) return nullptr;
  auto document = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  return document.is_discarded() ? nlohmann::json(nullptr) : document;
}

}  // namespace longspan::trainer
