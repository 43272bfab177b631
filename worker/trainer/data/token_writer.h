// Writes tokens.bin, documents.bin and, for records, scored.bin of prepared data. Throws StorageError.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <vector>

#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

class TokenWriter {
 public:
  TokenWriter(const std::filesystem::path& folder, int bytes_per_token, bool with_scored);

  // Appends tokens and the documents that end among them: `document_ends` are positions in `ids`, rising. `scored` has
  // a byte for each id, or none at all without scored.bin.
  void Append(const std::vector<TokenId>& ids, const std::vector<uint8_t>& scored,
              const std::vector<size_t>& document_ends);
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
  std::ofstream scored_file_;
  bool with_scored_;
  std::vector<uint16_t> narrow_;
  int64_t tokens_ = 0;
  int64_t documents_ = 0;
  TokenId largest_id_ = 0;

  void WriteIds(const std::vector<TokenId>& ids);
  void Write(std::ofstream& file, const void* bytes, size_t count) const;
};

}  // namespace longspan::trainer
