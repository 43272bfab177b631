// Writes tokens.bin and documents.bin of prepared data. Throws StorageError.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <vector>

#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

class TokenWriter {
 public:
  TokenWriter(const std::filesystem::path& folder, int bytes_per_token);

  void Append(const std::vector<TokenId>& ids);
  void EndDocument();
  // Call once, at the end: what is not on the disk by then is an error.
  void Finish();

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return documents_; }
  TokenId largest_id() const { return largest_id_; }

 private:
  std::filesystem::path folder_;
  int bytes_per_token_;
  std::ofstream token_file_;
  std::ofstream offset_file_;
  std::vector<uint16_t> narrow_;
  int64_t tokens_ = 0;
  int64_t documents_ = 0;
  TokenId largest_id_ = 0;

  void Write(std::ofstream& file, const void* bytes, size_t count) const;
};

}  // namespace longspan::trainer
