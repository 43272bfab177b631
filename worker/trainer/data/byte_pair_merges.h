// Byte-pair encoding of one piece: starts from its bytes and joins the pair with the lowest rank (the leftmost of
// equals) until no pair of the list is left. The "model" of a byte-level tokenizer.json. Immutable and thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

class BytePairMerges {
 public:
  // `model` is the value of "model"; throws UserError, naming `file`.
  static BytePairMerges Parse(const nlohmann::json& model, const std::string& file);

  void EncodeTo(std::string_view piece, std::vector<TokenId>& ids) const;

  // Ids by the text in the file (byte letters).
  const std::unordered_map<std::string, TokenId>& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    uint32_t rank;
    TokenId joined;
  };
  struct Symbol;

  void ReadBytes(const std::string& file);
  void ReadMerges(const nlohmann::json& merges, const std::string& file);
  void ReadWholeWords();
  const Merge* Find(TokenId left, TokenId right) const;

  std::unordered_map<std::string, TokenId> vocabulary_;
  std::array<TokenId, 256> byte_ids_{};
  std::unordered_map<uint64_t, Merge> merges_;
  // Raw bytes of every token; only when the file says ignore_merges: a piece that is a token stays whole.
  std::unordered_map<std::string, TokenId> whole_words_;
};

}  // namespace longspan::trainer
