#include "worker/trainer/data/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>

#include "worker/trainer/data/unicode_classes.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {

void Pattern::FreeCode::operator()(void* code) const { pcre2_code_free(static_cast<pcre2_code*>(code)); }
void Pattern::Search::FreeMatch::operator()(void* match) const {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(match));
}

Pattern::Pattern(const JsonPlace& place) : file_(place.file()) {
  const std::string pattern = place.String();
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                                   &error, &offset, nullptr);
  if (code == nullptr) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    place.Fail(fmt::format("the pattern {} does not compile: {} at byte {}", place.path(),
                           reinterpret_cast<const char*>(message.data()), offset));
  }
  code_.reset(code);
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // Only faster: without it the interpreter runs.
}

Pattern::Search::Search(const Pattern& pattern, std::string_view text)
    : pattern_(pattern),
      text_(text),
      match_(pcre2_match_data_create_from_pattern(static_cast<const pcre2_code*>(pattern.code_.get()), nullptr)) {}

std::optional<PatternMatch> Pattern::Search::Next() {
  auto* match = static_cast<pcre2_match_data*>(match_.get());
  while (from_ <= text_.size()) {
    const int rc =
        pcre2_match(static_cast<const pcre2_code*>(pattern_.code_.get()), reinterpret_cast<PCRE2_SPTR>(text_.data()),
                    text_.size(), from_, PCRE2_NO_UTF_CHECK, match, nullptr);
    if (rc == PCRE2_ERROR_NOMATCH) return std::nullopt;
    if (rc < 0) {
      throw UserError(fmt::format("cannot use {}: a pattern gave up on a text (PCRE2 error {})", pattern_.file_, rc));
    }
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match);
    const PatternMatch found{span[0], std::max(span[0], span[1])};
    if (found.begin == found.end && last_end_ == found.end) {
      from_ += std::max<size_t>(1, CharacterAt(text_, from_).bytes);
      continue;
    }
    from_ = found.end;
    last_end_ = found.end;
    return found;
  }
  return std::nullopt;
}

}  // namespace longspan::trainer
