// A regular expression of a tokenizer.json, run by PCRE2 with Unicode properties, searched as the `tokenizers` package
// searches (its engine is Oniguruma).
//
// Unicode is the system library's, which is older than the package's: characters younger than PCRE2 10.42's Unicode 14
// are unassigned to it, and it counts U+180E as white space. The patterns of the known model families do not come here
// (known_patterns.h). Immutable and thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "worker/trainer/data/json_place.h"

namespace longspan::trainer {

struct PatternMatch {
  size_t begin;
  size_t end;  // == begin for an empty match
};

class Pattern {
 public:
  // `place` holds the pattern as a string; throws UserError when it does not compile.
  explicit Pattern(const JsonPlace& place);

  // All matches in order. An empty match directly behind another match does not count.
  class Search {
   public:
    Search(const Pattern& pattern, std::string_view text);
    std::optional<PatternMatch> Next();

   private:
    struct FreeMatch {
      void operator()(void* match) const;
    };
    const Pattern& pattern_;
    std::string_view text_;
    std::unique_ptr<void, FreeMatch> match_;
    size_t from_ = 0;
    std::optional<size_t> last_end_;
  };

 private:
  struct FreeCode {
    void operator()(void* code) const;
  };
  std::unique_ptr<void, FreeCode> code_;
  std::string file_;
};

}  // namespace longspan::trainer
