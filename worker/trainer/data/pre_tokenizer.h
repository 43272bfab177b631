// Cuts text into the pieces that byte-pair merges never cross, as the `pre_tokenizer` of tokenizer.json says:
// ByteLevel, Metaspace, Split, Digits and Sequence. Others are refused by name.
//
// The patterns of the known families are scanners (known_patterns.h); any other pattern runs in PCRE2 (pattern.h),
// whose Unicode is older than the package's.
//
// Immutable and thread-safe.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "worker/trainer/data/json_place.h"

namespace longspan::trainer {

// Pieces of one text. Most point into the text; where it was rewritten, the new text lives in `made`.
struct Pieces {
  std::vector<std::string_view> views;
  std::deque<std::string> made;
  std::vector<std::string_view> coarse;  // while cutting
};

// One member of a pre-tokenizer: turns pieces into finer ones.
class SplitStep {
 public:
  virtual ~SplitStep() = default;
  // `at_start`: the piece stands at the start of the whole text.
  virtual void Split(std::string_view piece, bool at_start, Pieces& out) const = 0;
  // What this step does where an ASCII letter stands before '\n'; see Tokenizer::CanCutBeforeNewline.
  enum class LetterNewline {
    kCuts,         // always ends a piece there
    kIndifferent,  // a cut there changes nothing else
    kUnknown,
  };
  virtual LetterNewline AtLetterNewline() const = 0;
  virtual bool prepends() const { return false; }
};

class PreTokenizer {
 public:
  // `description` is the value of "pre_tokenizer", empty when there is none. Throws UserError.
  static PreTokenizer Parse(const std::optional<JsonPlace>& description);

  // Requires UTF-8. Never gives an empty piece. `at_start`: nothing of the whole text stands before `text`.
  void Split(std::string_view text, bool at_start, Pieces& out) const;

  // ByteLevel is a member (the last): the model reads bytes as letters.
  bool byte_level() const { return byte_level_; }
  // A text gets something in front, so its parts cannot be cut one by one.
  bool prepends() const;
  // A piece always ends between an ASCII letter and '\n', or a text may be cut there as far as the pre-tokenizer goes.
  bool CutsBeforeNewline() const;
  bool AllowsCutBeforeNewline() const;

 private:
  std::vector<std::unique_ptr<SplitStep>> steps_;
  bool byte_level_ = false;
};

}  // namespace longspan::trainer
