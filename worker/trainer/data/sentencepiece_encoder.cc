#include "worker/trainer/data/sentencepiece_encoder.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <algorithm>

#include "worker/trainer/data/added_tokens.h"
#include "worker/trainer/data/sentencepiece_settings.h"
#include "worker/trainer/data/unicode_classes.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

constexpr std::string_view kVisibleSpace = "\xE2\x96\x81";  // U+2581

bool IsGraphic(char c) { return c > ' ' && c < '\x7F'; }

// A piece with a space that follows something else reaches over the border of two words.
bool ReachesOverWords(std::string_view piece) {
  size_t at = 0;
  while (piece.substr(at).starts_with(kVisibleSpace)) at += kVisibleSpace.size();
  return piece.find(kVisibleSpace, at) != std::string_view::npos;
}

bool ReachesOverLetterNewline(std::string_view piece) {
  for (size_t at = 1; at < piece.size(); ++at) {
    if (piece[at] == '\n' && IsAsciiLetter(piece[at - 1])) return true;
  }
  return false;
}

class SentencePieceEncoder : public Encoder {
 public:
  SentencePieceEncoder(const std::string& model, const std::string& file, const JsonPlace& config,
                       const JsonPlace& added_tokens)
      : settings_(ReadSentencePieceSettings(model, file)) {
    Load(model, file);
    if (processor_.GetPieceSize() < 1) throw UserError(fmt::format("cannot use {}: it has no pieces", file));
    pieces_ = static_cast<TokenId>(processor_.GetPieceSize());
    ReadAddedTokens(added_tokens);
    FindWhereToCut();
    ReadAround(config, "add_bos_token", "bos_token", true, processor_.bos_id(), prefix_);
    ReadAround(config, "add_eos_token", "eos_token", false, processor_.eos_id(), suffix_);
  }

  void EncodeTo(std::string_view text, Work& work, std::vector<TokenId>& ids) const override {
    added_.SplitRaw(text, [&](std::string_view part, std::optional<TokenId> token) {
      if (token) {
        ids.push_back(*token);
      } else {
        EncodeSection(part, work, ids);
      }
    });
  }

  std::string Decode(std::span<const TokenId> ids, bool skip_special) const override {
    std::string text;
    std::vector<int> run;
    const auto flush = [&] {
      if (!run.empty()) text += processor_.DecodeIds(run);
      run.clear();
    };
    for (const TokenId id : ids) {
      if (const AddedTokens::Decoded* added = added_.FindId(id)) {
        flush();
        if (!skip_special) text += added->text;
      } else if (id < pieces_) {
        run.push_back(static_cast<int>(id));
      }
    }
    flush();
    return ReplaceInvalidUtf8(text);
  }

  std::optional<TokenId> IdOf(std::string_view token) const override {
    if (const auto id = added_.Find(token)) return id;
    return IdOfPiece(token);
  }
  TokenId largest_id() const override { return std::max(pieces_ - 1, added_.largest_id()); }
  const std::vector<TokenId>& prefix() const override { return prefix_; }
  const std::vector<TokenId>& suffix() const override { return suffix_; }
  std::optional<TokenId> eos() const override {
    return processor_.eos_id() < 0 ? std::nullopt : std::optional(static_cast<TokenId>(processor_.eos_id()));
  }
  bool CanCutBeforeNewline() const override {
    return cuts_words_ && cuts_lines_ && added_.StaysWithinLines() && added_.NeverEndsWithLetter();
  }
  bool prepends() const override { return true; }  // and takes spaces away

 private:
  void Load(const std::string& model, const std::string& file) {
    std::string problem;
    try {
      const sentencepiece::util::Status status = processor_.LoadFromSerializedProto(model);
      if (status.ok()) return;
      problem = status.ToString();
    } catch (const std::exception& error) {  // of Darts inside the library: a piece without a text, for one
      problem = error.what();
    }
    throw UserError(fmt::format("cannot use {}: it is not a sentencepiece model: {}", file, problem));
  }

  std::optional<TokenId> IdOfPiece(std::string_view piece) const {
    const int id = processor_.PieceToId(piece);
    // The id of the unknown piece answers for all that are none.
    if (id < 0 || (id == processor_.unk_id() && processor_.IdToPiece(id) != piece)) return std::nullopt;
    return static_cast<TokenId>(id);
  }

  void ReadAddedTokens(const JsonPlace& place) {
    std::vector<AddedTokens::Entry> entries;
    for (const auto& [content, value] : place.value().items()) {
      if (content.empty()) place.Fail("it has a token without a text");
      AddedTokens::Entry entry;
      entry.content = content;
      entry.id = static_cast<TokenId>(place.At(content).Unsigned(kTokenIdMax));
      entry.special = true;
      const auto piece = IdOfPiece(content);
      if (piece ? *piece != entry.id : entry.id < pieces_) {
        place.Fail(fmt::format("{} has the id {}, which tokenizer.model gives to {}", content, entry.id,
                               processor_.IdToPiece(static_cast<int>(std::min(entry.id, pieces_ - 1)))));
      }
      entries.push_back(std::move(entry));
    }
    added_ = AddedTokens(entries, Normalizer(), place);
  }

  void FindWhereToCut() {
    cuts_words_ = settings_.escape_whitespaces && !settings_.treat_whitespace_as_suffix &&
                  (settings_.add_dummy_prefix || !settings_.remove_extra_whitespaces) &&
                  IdOfPiece(kVisibleSpace).has_value();
    cuts_lines_ = true;
    for (TokenId id = 0; id < pieces_; ++id) {
      const std::string& piece = processor_.IdToPiece(static_cast<int>(id));
      cuts_words_ = cuts_words_ && !ReachesOverWords(piece);
      cuts_lines_ = cuts_lines_ && !ReachesOverLetterNewline(piece);
    }
    for (char c = 'A'; c <= 'z'; ++c) {
      if (IsAsciiLetter(c) && !IdOfPiece(std::string_view(&c, 1))) cuts_lines_ = false;
    }
  }

  void ReadAround(const JsonPlace& config, const char* add_key, const char* token_key, bool added_by_default,
                  int model_id, std::vector<TokenId>& around) const {
    if (!config.BoolOr(add_key, added_by_default)) return;
    if (const auto token = config.Find(token_key)) {
      const JsonPlace text = token->value().is_object() ? token->At("content") : *token;
      const auto id = IdOf(text.String());
      if (!id) text.Fail(fmt::format("{} is {}, which tokenizer.model lacks", text.path(), text.String()));
      around.push_back(*id);
    } else if (model_id >= 0) {
      around.push_back(static_cast<TokenId>(model_id));
    } else if (config.Find(add_key)) {
      config.Fail(fmt::format("{} is true, but neither it nor tokenizer.model has a {}", add_key, token_key));
    }
  }

  void EncodeSection(std::string_view section, Work& work, std::vector<TokenId>& ids) const {
    for (size_t begin = 0; begin < section.size();) {
      const size_t end = cuts_words_ ? EndOfWord(section, begin) : section.size();
      std::string_view word = section.substr(begin, end - begin);
      // The space in front is the one that the library puts there.
      if (begin > 0 && settings_.add_dummy_prefix) word.remove_prefix(1);
      work.words.EncodeTo(word, ids, [&](std::vector<TokenId>& out) {
        const sentencepiece::util::Status status = processor_.Encode(word, &work.sentencepiece_ids);
        if (!status.ok()) throw UserError("cannot encode a text with tokenizer.model: " + status.ToString());
        out.insert(out.end(), work.sentencepiece_ids.begin(), work.sentencepiece_ids.end());
      });
      begin = end;
    }
  }

  // The next space between two words of printable ASCII: others may be rewritten, to spaces or to nothing.
  static size_t EndOfWord(std::string_view text, size_t begin) {
    for (size_t at = text.find(' ', begin + 1); at != std::string_view::npos; at = text.find(' ', at + 1)) {
      if (!IsGraphic(text[at - 1])) continue;
      const size_t next = text.find_first_not_of(' ', at);
      if (next == std::string_view::npos) break;
      if (IsGraphic(text[next])) return at;
      at = next - 1;
    }
    return text.size();
  }

  SentencePieceSettings settings_;
  sentencepiece::SentencePieceProcessor processor_;
  TokenId pieces_ = 0;
  AddedTokens added_;
  std::vector<TokenId> prefix_;
  std::vector<TokenId> suffix_;
  bool cuts_words_ = false;
  bool cuts_lines_ = false;
};

}  // namespace

std::unique_ptr<Encoder> MakeSentencePieceEncoder(const std::string& model, const std::string& file,
                                                  const JsonPlace& tokenizer_config, const JsonPlace& added_tokens) {
  return std::make_unique<SentencePieceEncoder>(model, file, tokenizer_config, added_tokens);
}

}  // namespace longspan::trainer
