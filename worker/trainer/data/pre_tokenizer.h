// Cuts text into the pieces that byte-pair merges never cross, as the `pre_tokenizer` of tokenizer.json says.
//
// The patterns of the models we know (GPT-2's, Llama 3's and Qwen 2's) are scanners written by hand over the Unicode
// tables of the pinned `tokenizers` package. Any other pattern runs in PCRE2 with Unicode properties, whose Unicode is
// the system library's: characters younger than that may be cut differently.
//
// Immutable and thread-safe.
#pragma once

#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace longspan::trainer {

// Pieces of one text. Most point into the text; where a space was put in front, the piece lives in `made`.
struct Pieces {
  std::vector<std::string_view> views;
  std::deque<std::string> made;
};

// One member of a pre-tokenizer: turns pieces into finer ones.
class SplitStep {
 public:
  virtual ~SplitStep() = default;
  virtual void Split(std::string_view piece, Pieces& out) const = 0;
  // What this step does where an ASCII letter stands before '\n'; see Tokenizer::CanCutBeforeNewline.
  enum class LetterNewline {
    kCuts,         // always ends a piece there
    kIndifferent,  // a cut there changes nothing else
    kUnknown,
  };
  virtual LetterNewline AtLetterNewline() const = 0;
};

class PreTokenizer {
 public:
  // `description` is the value of "pre_tokenizer"; throws UserError, naming what is not supported and `file`.
  static PreTokenizer Parse(const nlohmann::json& description, const std::string& file);

  // Requires UTF-8. Never gives an empty piece.
  void Split(std::string_view text, Pieces& out) const;
  bool CanCutBeforeNewline() const;

 private:
  std::vector<std::unique_ptr<SplitStep>> steps_;
};

}  // namespace longspan::trainer
