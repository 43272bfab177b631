// Rewrites text before it is cut, as the `normalizer` of tokenizer.json says: NFC, NFD, NFKC, NFKD, Lowercase,
// StripAccents, Strip, Prepend, Replace and Sequence. Others are refused by name. Immutable and thread-safe.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "worker/trainer/data/json_place.h"

namespace longspan::trainer {

// One member of a normalizer.
class NormalizeStep {
 public:
  virtual ~NormalizeStep() = default;
  virtual void Append(std::string_view text, std::string& out) const = 0;
  // The parts of a text cut between an ASCII letter and '\n' become the parts of the normalised text, cut at the same
  // place; what is put in front of the second part aside (see prepends).
  virtual bool KeepsLetterNewline() const { return true; }
  virtual bool prepends() const { return false; }
};

class Normalizer {
 public:
  // `description` is the value of "normalizer", empty when there is none. Throws UserError.
  static Normalizer Parse(const std::optional<JsonPlace>& description);

  // The normalised text: `text` itself where there is nothing to do, else a view of `buffer`.
  std::string_view Normalize(std::string_view text, std::string& buffer) const;

  bool empty() const { return steps_.empty(); }
  bool KeepsLetterNewline() const;
  // A text gets something in front, so its parts cannot be normalised one by one.
  bool prepends() const;

 private:
  std::vector<std::unique_ptr<NormalizeStep>> steps_;
};

}  // namespace longspan::trainer
