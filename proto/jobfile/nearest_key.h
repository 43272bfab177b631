// The key a user probably meant.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace longspan::jobfile {

// Insertions, deletions, replacements and swaps of neighbours that turn one text into the other.
size_t EditDistance(std::string_view a, std::string_view b);

// The candidate path nearest to an unknown one: first a known key of that very name in another section, then the fewest
// edits. Empty when nothing is near enough to be more than a guess. Texts longer than 128 bytes have no near key.
std::string NearestKey(std::string_view unknown_path, const std::vector<std::string>& candidate_paths);

}  // namespace longspan::jobfile
