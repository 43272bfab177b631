// What a tokenizer's file makes of text: the part of a Tokenizer that differs between tokenizer.json and
// tokenizer.model. Immutable and thread-safe; Work belongs to one thread.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "worker/trainer/data/byte_pair_merges.h"
#include "worker/trainer/data/pre_tokenizer.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/data/word_cache.h"

namespace longspan::trainer {

class Encoder {
 public:
  // Memory for the work of one thread.
  struct Work {
    WordCache words;
    Pieces pieces;
    std::string normalized;
    std::string copy;
    BytePairMerges::Scratch merging;
    std::vector<int> sentencepiece_ids;
  };

  virtual ~Encoder() = default;

  // Appends the ids of valid UTF-8.
  virtual void EncodeTo(std::string_view text, Work& work, std::vector<TokenId>& ids) const = 0;
  virtual std::string Decode(std::span<const TokenId> ids, bool skip_special) const = 0;
  virtual std::optional<TokenId> IdOf(std::string_view token) const = 0;
  virtual TokenId largest_id() const = 0;

  // Around one text: usually BOS and nothing, or nothing at all.
  virtual const std::vector<TokenId>& prefix() const = 0;
  virtual const std::vector<TokenId>& suffix() const = 0;
  // The file's own end-of-text token, for folders that name none.
  virtual std::optional<TokenId> eos() const { return std::nullopt; }

  // A text may be cut between an ASCII letter and '\n'. When a text gets something in front (prepends), the second part
  // is encoded behind a letter, whose ids are taken away again.
  virtual bool CanCutBeforeNewline() const = 0;
  virtual bool prepends() const = 0;
};

}  // namespace longspan::trainer
