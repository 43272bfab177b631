// Where the keys of a JSON text stand, for messages about a job file.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace longspan::jobfile {

struct TextLines {
  std::map<std::string, int, std::less<>> line_of;         // key path -> line, 1-based
  std::vector<std::pair<std::string, int>> repeated_keys;  // path and line of each further occurrence
};

// Scans a text that a JSON parser has accepted; on any other text the answer is unspecified, but still an answer. Needs
// no recursion, so nesting is not limited by the stack. Keys are compared as written: an escaped key ("\u006eame") has
// no line.
TextLines ScanLines(std::string_view json_text);

}  // namespace longspan::jobfile
