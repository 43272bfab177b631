// Finds added tokens (`<s>`, `<|endoftext|>`, ...) inside text, as the `added_tokens` of tokenizer.json say. Immutable
// and thread-safe.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "worker/trainer/data/json_place.h"
#include "worker/trainer/data/normalizer.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

class AddedTokens {
 public:
  // What an entry of the file says.
  struct Entry {
    std::string content;
    TokenId id = 0;
    bool single_word = false;  // not beside a word character
    bool strip_left = false;   // takes the white space on that side with it
    bool strip_right = false;
    bool normalized = false;  // looked for, as normalised text, in the normalised text
    bool special = false;     // Decode can leave it out
  };

  // `list` is the value of "added_tokens". A token of the vocabulary has the id it has there; the others must be
  // numbered on from the vocabulary's size, as the package numbers them whatever the file says. Throws UserError.
  static AddedTokens Parse(const std::optional<JsonPlace>& list,
                           const std::unordered_map<std::string, TokenId>& vocabulary, const Normalizer& normalizer);
  // Tokens looked for as they are, in the order given.
  explicit AddedTokens(const std::vector<Entry>& entries, const Normalizer& normalizer, const JsonPlace& place);
  AddedTokens() = default;

  // Calls back for every part of the text in order: an added token's id, or text between (never empty). First for the
  // tokens that are looked for in the text as it is, then, inside what is left and was normalised, for the others.
  using Visit = std::function<void(std::string_view text, std::optional<TokenId> token)>;
  void SplitRaw(std::string_view text, const Visit& visit) const { raw_.Split(text, visit); }
  void SplitNormalized(std::string_view text, const Visit& visit) const { normalized_.Split(text, visit); }

  std::optional<TokenId> Find(std::string_view content) const;
  // By id: the text that Decode puts for a token, and whether it is special. Null when the id is no added token.
  struct Decoded {
    std::string text;
    bool special = false;
  };
  const Decoded* FindId(TokenId id) const;

  TokenId largest_id() const { return largest_id_; }
  bool empty() const { return ids_.empty(); }
  // No token can reach over a line break: a text may be cut before any '\n'.
  bool StaysWithinLines() const { return stays_within_lines_; }
  // No token ends with an ASCII letter: what stands behind one is no start of a text.
  bool NeverEndsWithLetter() const { return never_ends_with_letter_; }

 private:
  struct Token {
    std::string content;
    Entry entry;
  };
  // The tokens of one pass, by first byte, the longest first.
  struct Pass {
    std::array<std::vector<Token>, 256> by_first_byte;
    bool empty = true;
    void Add(Token token, const JsonPlace& place);
    const Token* MatchAt(std::string_view text, size_t at) const;
    void Split(std::string_view text, const Visit& visit) const;
  };

  Pass raw_;
  Pass normalized_;
  std::unordered_map<std::string, TokenId> ids_;
  std::unordered_map<TokenId, Decoded> decoded_;
  TokenId largest_id_ = 0;
  bool stays_within_lines_ = true;
  bool never_ends_with_letter_ = true;
};

}  // namespace longspan::trainer
