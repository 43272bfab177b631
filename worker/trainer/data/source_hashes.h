// SHA-256 of corpus files, remembered by path, size and modification time, so that a resumed job does not read a large
// corpus again only to find out that nothing changed. Kept in <datasets_root>/source_hashes.json; losing it, or an
// update of it, costs time only.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "worker/trainer/data/corpus_files.h"

namespace longspan::trainer {

class SourceHashes {
 public:
  // A missing or damaged file is an empty memory.
  explicit SourceHashes(const std::filesystem::path& datasets_root);

  std::string Hash(const CorpusFile& file);
  void Save() const;

 private:
  std::filesystem::path path_;
  nlohmann::json known_;
  bool changed_ = false;
};

}  // namespace longspan::trainer
