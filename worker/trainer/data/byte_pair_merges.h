// Byte-pair encoding of one piece: starts from its bytes or characters and joins the pair with the lowest rank (the
// leftmost of equals) until no pair of the list is left. The "model" of a tokenizer.json. Immutable and thread-safe.
//
// A piece of n symbols takes O(n log n) steps, whatever it is: a line of a megabyte without a space is no trouble.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "worker/trainer/data/json_place.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

// What a piece is made of before the first merge.
enum class Alphabet {
  kBytes,       // byte-level: the file writes each byte as a letter, and has all that occur in UTF-8
  kCharacters,  // the file's single characters; others become their bytes (`<0xE2>`), or the unknown token, or nothing
};

class BytePairMerges {
 public:
  // `model` is the value of "model". Throws UserError.
  static BytePairMerges Parse(const JsonPlace& model, Alphabet alphabet);

  // Memory for the work of one thread.
  struct Scratch {
    struct Symbol {
      TokenId id;
      int32_t previous;
      int32_t next;
      bool gone;
    };
    struct Candidate {
      uint32_t rank;
      int32_t left;
      TokenId joined;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };
  // Appends the ids of a piece. Requires UTF-8 and fewer than 2^31 bytes.
  void EncodeTo(std::string_view piece, Scratch& scratch, std::vector<TokenId>& ids) const;

  // The end of the part that starts at `begin` and can be encoded by itself: no merge reaches over it. Words, where a
  // vocabulary of whole words allows it ("▁the" but never "of▁the"); else the whole piece.
  size_t EndOfPart(std::string_view piece, size_t begin) const;
  // A piece can also be cut between an ASCII letter and '\n'.
  bool NeverJoinsLetterNewline() const { return never_joins_letter_newline_; }

  // Ids by the text in the file (byte letters).
  const std::unordered_map<std::string, TokenId>& vocabulary() const { return vocabulary_; }
  const std::string* Find(TokenId id) const;
  TokenId largest_id() const { return largest_id_; }

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    TokenId joined = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  void ReadVocabulary(const JsonPlace& vocabulary);
  void ReadBytes(const JsonPlace& model);
  void ReadCharacters(const JsonPlace& model);
  void ReadMerges(const JsonPlace& merges);
  void ReadMerge(const JsonPlace& merges, size_t index, std::string_view left, std::string_view right);
  void ReadWholeWords();
  void PutMerge(const Merge& merge);
  const Merge* FindMerge(TokenId left, TokenId right) const;
  TokenId IdOfMergePart(const JsonPlace& merges, size_t index, const std::string& part) const;

  void AppendBytes(std::string_view piece, Scratch& scratch) const;
  void AppendCharacters(std::string_view piece, Scratch& scratch) const;
  void MergeAll(Scratch& scratch) const;
  void Consider(int32_t left, Scratch& scratch) const;

  Alphabet alphabet_ = Alphabet::kBytes;
  std::unordered_map<std::string, TokenId> vocabulary_;
  std::unordered_map<TokenId, const std::string*> tokens_;
  TokenId largest_id_ = 0;
  std::array<std::optional<TokenId>, 256> byte_ids_;  // with kCharacters: of `<0x00>` to `<0xFF>`
  std::unordered_map<uint32_t, TokenId> characters_;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  std::optional<TokenId> unknown_;
  bool cuts_before_spaces_ = false;
  bool never_joins_letter_newline_ = false;
  std::vector<Merge> merges_;  // a hash table with open addressing; its size is a power of two
  // Text of every token; only when the file says ignore_merges: a piece that is a token stays whole.
  std::unordered_map<std::string, TokenId> whole_words_;
};

}  // namespace longspan::trainer
