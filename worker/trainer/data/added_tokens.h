// Finds added tokens (`<s>`, `<|endoftext|>`, ...) inside text, as the `added_tokens` of tokenizer.json say. Immutable
// and thread-safe.
#pragma once

#include <array>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

class AddedTokens {
 public:
  // `list` is the value of "added_tokens"; an id of the vocabulary counts before the list's own. Throws UserError.
  static AddedTokens Parse(const nlohmann::json& list, const std::unordered_map<std::string, TokenId>& vocabulary,
                           const std::string& file);

  // Calls back for every part of the text in order: an added token's id, or text between (never empty).
  using Visit = std::function<void(std::string_view text, std::optional<TokenId> token)>;
  void Split(std::string_view text, const Visit& visit) const;

  std::optional<TokenId> Find(std::string_view content) const;
  TokenId largest_id() const { return largest_id_; }
  // No token can reach over a line break: a text may be cut before any '\n'.
  bool StaysWithinLines() const { return stays_within_lines_; }

 private:
  struct Token {
    std::string content;
    TokenId id;
    bool strip_left;
    bool strip_right;
  };
  // The tokens of one pass, by first byte, the longest first.
  struct Pass {
    std::array<std::vector<Token>, 256> by_first_byte;
    bool empty = true;
    const Token* MatchAt(std::string_view text, size_t at) const;
    void Split(std::string_view text, const Visit& visit) const;
  };

  std::vector<Pass> passes_;  // the package looks for raw tokens first, for normalised ones in the rest
  std::unordered_map<std::string, TokenId> ids_;
  TokenId largest_id_ = 0;
  bool stays_within_lines_ = true;
};

}  // namespace longspan::trainer
