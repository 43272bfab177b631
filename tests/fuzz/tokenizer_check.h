// What every tokenizer that could be read must keep, whatever its file says.
#pragma once

#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/errors.h"

namespace longspan::fuzz {

inline void Require(bool holds) {
  if (!holds) std::abort();
}

// Ids lie in the vocabulary, texts made of ids are UTF-8, and a text that may be cut gives the same ids when it is.
inline void CheckTokenizer(const trainer::Tokenizer& tokenizer) {
  using trainer::TokenId;
  constexpr size_t kDecodedMax = 512;
  trainer::MergeCache cache;
  for (const std::string text :
       {"", "Hello, world  \n\n\t 12345 it's", "\xC3\xA9\xE2\x80\x8D\xF0\x9F\x98\x80 <s>ab</s>\xE2\x96\x81x",
        "\xEF\xAC\x81 e\xCC\x81 A\n b [INST] ab\xFF\n\nhello hello"}) {
    const std::vector<TokenId> ids = tokenizer.Encode(text, true);
    for (const TokenId id : ids) Require(static_cast<int64_t>(id) < tokenizer.vocab_size());
    for (const bool skip_special : {false, true}) {
      Require(!trainer::FindInvalidUtf8(tokenizer.Decode(ids, skip_special)));
    }
  }
  if (tokenizer.CanCutBeforeNewline()) {
    const std::string text = "Hello ab\n  hello\n\n12 x\nab";
    std::vector<TokenId> whole, parts;
    tokenizer.EncodeTo(text, cache, whole);
    tokenizer.EncodeTo(text.substr(0, 8), cache, parts);
    tokenizer.ContinueTo(text.substr(8, 14), cache, parts);  // up to the x
    tokenizer.ContinueTo(text.substr(22), cache, parts);
    Require(whole == parts);
  }
  std::vector<int64_t> all(std::min(kDecodedMax, static_cast<size_t>(tokenizer.vocab_size()) + 2));
  std::iota(all.begin(), all.end(), -1);
  Require(!trainer::FindInvalidUtf8(tokenizer.Decode(all, false)));
  tokenizer.IdOf("a");
}

}  // namespace longspan::fuzz
