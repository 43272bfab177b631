// A byte-level BPE tokenizer read from a Hugging Face folder (tokenizer.json), token for token equal to the
// `tokenizers` package on valid UTF-8.
//
// Understood: model BPE over byte letters; added tokens; pre-tokenizers ByteLevel, Split, Digits and Sequence;
// post-processors TemplateProcessing, ByteLevel and Sequence; no normalizer. Everything else is refused by name with
// UserError, never ignored. `truncation` and `padding` of the file are not applied: they belong to inference, a corpus
// is never cut by them.
//
// Immutable after Load and thread-safe; a MergeCache belongs to one thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longspan::trainer {

using TokenId = uint32_t;

// Remembers how pieces of text were cut, which makes encoding of natural text several times faster. Bounded.
class MergeCache {
 public:
  MergeCache();
  ~MergeCache();
  MergeCache(MergeCache&&) noexcept;

 private:
  friend class Tokenizer;
  struct Entries;
  std::unique_ptr<Entries> entries_;
};

class Tokenizer {
 public:
  // Reads tokenizer.json and, for the end-of-text token, tokenizer_config.json, special_tokens_map.json and config.json
  // (the first that names one). Throws UserError.
  static Tokenizer Load(const std::filesystem::path& model_folder);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  // Appends the ids of `text`, without the tokens that a post-processor adds. Added tokens are recognised inside the
  // text, as the package does. Throws UserError when `text` is not UTF-8.
  void EncodeTo(std::string_view text, MergeCache& cache, std::vector<TokenId>& ids) const;
  // The same, whole: what `Tokenizer.encode(text, add_special_tokens=...)` of the package returns.
  std::vector<TokenId> Encode(std::string_view text, bool add_special_tokens) const;

  // What the post-processor puts before and behind one sequence: usually BOS and nothing, or nothing at all.
  const std::vector<TokenId>& prefix() const;
  const std::vector<TokenId>& suffix() const;
  std::optional<TokenId> eos() const;  // empty: the folder names none

  // Largest id plus one; config.json's vocab_size may be larger (padding of the embedding) or smaller (unused added
  // tokens).
  int64_t vocab_size() const;
  // SHA-256 of everything that decides ids, for the key of prepared data.
  const std::string& fingerprint() const;

  // Encoding may be cut between an ASCII letter and the '\n' behind it without changing any id, so that a document of
  // any size streams through a bounded buffer. True for the known pre-tokenizers, false where we cannot be sure.
  bool CanCutBeforeNewline() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Offset of the first byte that is not UTF-8 (overlong forms, surrogates and values above U+10FFFF included); empty
// when all is. With `incomplete_tail_ok`, a sequence cut off by the end of `text` is no mistake.
std::optional<size_t> FindInvalidUtf8(std::string_view text, bool incomplete_tail_ok = false);

}  // namespace longspan::trainer
