// From a record to token ids and which of them are scored.
//
// A rendering is tokenised as transformers does it, special tokens and texts together, cut only in front of special
// tokens (checked at construction to change nothing). A tokenizer.model does not know its control tokens inside text:
// there they are put between the texts by their ids. A token over the border of prompt and answer counts as answer.
// Text inside a record that spells a special token becomes that token, as it does in transformers; it is counted.
//
// A record longer than the context keeps its beginning: what is left of the answer is trained, without its end. One
// whose prompt leaves no scored token is dropped. Nothing is added to a vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/trainer/data/chat_template.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

struct EncodedRecord {
  std::vector<TokenId> ids;     // at most the context
  std::vector<uint8_t> scored;  // one for each id; the first is never scored, for nothing comes before it
  int64_t scored_tokens = 0;    // 0: the record is to be dropped
  bool cut = false;             // it was longer than the context
  bool special_in_text = false;
};

// Immutable and thread-safe; the tokenizer outlives it.
class RecordEncoder {
 public:
  // Throws UserError when the tokenizer has no such token for a special token of the template.
  RecordEncoder(const Tokenizer& tokenizer, RecordTemplate record_template, int64_t context_length);

  // Throws RecordError.
  EncodedRecord Encode(const SftRecord& record, MergeCache& cache) const;

  // What a model reads before it writes the answer at the end of `record`; of any length. Throws RecordError.
  std::vector<TokenId> EncodePrompt(const SftRecord& record, MergeCache& cache) const;
  // The token that an answer ends with.
  TokenId answer_end() const { return *tokenizer_.IdOf(template_.AnswerEnd()); }

  const RecordTemplate& record_template() const { return template_; }

 private:
  TokenId SpecialId(const std::string& token);
  // Ids of parts that stand together, of which only the first may be special.
  std::vector<TokenId> EncodeParts(const RenderedPart* begin, const RenderedPart* end, MergeCache& cache) const;
  void EncodeSection(const RenderedPart* begin, const RenderedPart* end, MergeCache& cache, EncodedRecord& out) const;

  const Tokenizer& tokenizer_;
  RecordTemplate template_;
  int64_t context_length_;
  std::vector<TokenId> special_ids_;
  bool special_apart_ = false;  // special tokens are not found inside text
};

}  // namespace longspan::trainer
