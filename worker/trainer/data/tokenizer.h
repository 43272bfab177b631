// Text to token ids and back, as the folder of a Hugging Face model says: its tokenizer.json, or where there is none
// its tokenizer.model (sentencepiece).
//
// tokenizer.json: ids equal those of the pinned `tokenizers` package. Understood are BPE over byte letters (GPT-2,
// GPT-NeoX, Llama 3, Qwen) and over characters with byte fallback (Llama 2, Mistral), and the normalizers,
// pre-tokenizers, post-processors, decoders and added tokens named in the headers of these parts. Everything else is
// refused by name with UserError, never ignored. `truncation` and `padding` of the file are not applied: they belong to
// inference, a corpus is never cut by them.
//
// tokenizer.model: ids equal those of the `sentencepiece` package; see sentencepiece_encoder.h.
//
// Immutable after Load and thread-safe; a MergeCache belongs to one thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longspan::trainer {

using TokenId = uint32_t;
inline constexpr TokenId kTokenIdMax = (1u << 24) - 1;  // a larger id in a file is a mistake

// The memory of one thread that encodes: how words were cut, which makes natural text several times faster. Bounded.
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
  // Reads the tokenizer and, for the end-of-text token, tokenizer_config.json, special_tokens_map.json and config.json
  // (the first that names one). Throws UserError, naming the file and the place in it.
  static Tokenizer Load(const std::filesystem::path& model_folder);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  // Appends the ids of `text`, without the tokens that a post-processor adds. Added tokens are recognised inside the
  // text, as the package does. Bytes that are not UTF-8 count as U+FFFD (see ReplaceInvalidUtf8). Any length of text;
  // beside the ids it needs memory for its longest line only where CanCutBeforeNewline says so, else for the text.
  void EncodeTo(std::string_view text, MergeCache& cache, std::vector<TokenId>& ids) const;
  // The same for a later part of a text that was cut before a '\n' as CanCutBeforeNewline allows.
  void ContinueTo(std::string_view text, MergeCache& cache, std::vector<TokenId>& ids) const;
  // The whole: what `Tokenizer.encode(text, add_special_tokens=...)` of the package returns.
  std::vector<TokenId> Encode(std::string_view text, bool add_special_tokens) const;

  // What `Tokenizer.decode(ids, skip_special_tokens=...)` of the package returns: valid UTF-8; ids without a token are
  // left out.
  std::string Decode(std::span<const TokenId> ids, bool skip_special) const;
  std::string Decode(std::span<const int64_t> ids, bool skip_special) const;

  // The id of a token by its text: added tokens, then the vocabulary. Empty when there is none.
  std::optional<TokenId> IdOf(std::string_view token) const;

  // What the post-processor puts before and behind one sequence: usually BOS and nothing, or nothing at all.
  const std::vector<TokenId>& prefix() const;
  const std::vector<TokenId>& suffix() const;
  std::optional<TokenId> eos() const;  // empty: the folder names none

  // Largest id plus one; config.json's vocab_size may be larger (padding of the embedding) or smaller (unused added
  // tokens).
  int64_t vocab_size() const;
  // SHA-256 of everything that decides ids, for the key of prepared data.
  const std::string& fingerprint() const;
  // "tokenizer.json" or "tokenizer.model".
  const std::string& file_name() const;

  // Encoding may be cut between an ASCII letter and the '\n' behind it without changing any id, so that a document of
  // any size streams through a bounded buffer: EncodeTo for the first part, ContinueTo for the others. True for the
  // known families, false where we cannot be sure.
  bool CanCutBeforeNewline() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Offset of the first byte that is not UTF-8 (overlong forms, surrogates and values above U+10FFFF included); empty
// when all is. With `incomplete_tail_ok`, a sequence cut off by the end of `text` is no mistake.
std::optional<size_t> FindInvalidUtf8(std::string_view text, bool incomplete_tail_ok = false);

// The text with U+FFFD for what is not UTF-8: one for each longest start of a sequence and for each other byte, as
// Python's bytes.decode(errors="replace") and Rust's from_utf8_lossy do.
std::string ReplaceInvalidUtf8(std::string_view text);

}  // namespace longspan::trainer
