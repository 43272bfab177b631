// White space as Python's str.strip() and Jinja's trim filter know it, which chat templates are written in.
#pragma once

#include <string_view>

namespace longspan::trainer {

// `text` (UTF-8) without white space at both ends.
std::string_view StripWhiteSpace(std::string_view text);

}  // namespace longspan::trainer
