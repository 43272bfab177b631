#include "worker/trainer/data/json_encoder.h"

#include <algorithm>

#include "worker/trainer/data/added_tokens.h"
#include "worker/trainer/data/normalizer.h"
#include "worker/trainer/data/post_processor.h"
#include "worker/trainer/data/token_decoder.h"

namespace longspan::trainer {
namespace {

class JsonEncoder : public Encoder {
 public:
  explicit JsonEncoder(const JsonPlace& document)
      : normalizer_(Normalizer::Parse(document.Find("normalizer"))),
        pre_tokenizer_(PreTokenizer::Parse(document.Find("pre_tokenizer"))),
        merges_(BytePairMerges::Parse(document.At("model"),
                                      pre_tokenizer_.byte_level() ? Alphabet::kBytes : Alphabet::kCharacters)),
        added_(AddedTokens::Parse(document.Find("added_tokens"), merges_.vocabulary(), normalizer_)),
        post_processor_(PostProcessor::Parse(document.Find("post_processor"))),
        decoder_(TokenDecoder::Parse(document.Find("decoder"))) {}

  void EncodeTo(std::string_view text, Work& work, std::vector<TokenId>& ids) const override {
    added_.SplitRaw(text, [&](std::string_view part, std::optional<TokenId> token) {
      if (token) {
        ids.push_back(*token);
      } else {
        EncodeSection(part, part.data() == text.data(), work, ids);
      }
    });
  }

  std::string Decode(std::span<const TokenId> ids, bool skip_special) const override {
    std::vector<std::string> tokens;
    for (const TokenId id : ids) {
      if (const AddedTokens::Decoded* added = added_.FindId(id)) {
        if (!skip_special || !added->special) tokens.push_back(added->text);
      } else if (const std::string* token = merges_.Find(id)) {
        tokens.push_back(*token);
      }
    }
    return decoder_.Decode(std::move(tokens));
  }

  std::optional<TokenId> IdOf(std::string_view token) const override {
    if (const auto id = added_.Find(token)) return id;
    const auto found = merges_.vocabulary().find(std::string(token));
    return found == merges_.vocabulary().end() ? std::nullopt : std::optional(found->second);
  }

  TokenId largest_id() const override { return std::max(added_.largest_id(), merges_.largest_id()); }
  const std::vector<TokenId>& prefix() const override { return post_processor_.prefix; }
  const std::vector<TokenId>& suffix() const override { return post_processor_.suffix; }

  bool CanCutBeforeNewline() const override {
    return added_.StaysWithinLines() && (added_.NeverEndsWithLetter() || !prepends()) &&
           normalizer_.KeepsLetterNewline() && pre_tokenizer_.AllowsCutBeforeNewline() &&
           (pre_tokenizer_.CutsBeforeNewline() || merges_.NeverJoinsLetterNewline());
  }
  bool prepends() const override { return normalizer_.prepends() || pre_tokenizer_.prepends(); }

 private:
  // Text between the added tokens that are looked for in raw text.
  void EncodeSection(std::string_view section, bool at_start, Work& work, std::vector<TokenId>& ids) const {
    const std::string_view normalized = normalizer_.Normalize(section, work.normalized);
    added_.SplitNormalized(normalized, [&](std::string_view part, std::optional<TokenId> token) {
      if (token) {
        ids.push_back(*token);
        return;
      }
      pre_tokenizer_.Split(part, at_start && part.data() == normalized.data(), work.pieces);
      for (const std::string_view piece : work.pieces.views) EncodePiece(piece, work, ids);
    });
  }

  void EncodePiece(std::string_view piece, Work& work, std::vector<TokenId>& ids) const {
    for (size_t begin = 0; begin < piece.size();) {
      const size_t end = merges_.EndOfPart(piece, begin);
      const std::string_view part = piece.substr(begin, end - begin);
      work.words.EncodeTo(part, ids, [&](std::vector<TokenId>& out) { merges_.EncodeTo(part, work.merging, out); });
      begin = end;
    }
  }

  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  BytePairMerges merges_;
  AddedTokens added_;
  PostProcessor post_processor_;
  TokenDecoder decoder_;
};

}  // namespace

std::unique_ptr<Encoder> MakeJsonEncoder(const std::string& text, const std::string& file) {
  const nlohmann::json document = ParseJsonFile(text, file);
  return std::make_unique<JsonEncoder>(JsonPlace(document, file));
}

}  // namespace longspan::trainer
