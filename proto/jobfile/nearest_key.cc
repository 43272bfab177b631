#include "proto/jobfile/nearest_key.h"

#include <algorithm>

namespace longspan::jobfile {
namespace {

constexpr size_t kLengthMax = 128;

std::string_view LastPart(std::string_view path) { return path.substr(path.rfind('.') + 1); }

std::string_view SectionOf(std::string_view path) {
  const size_t dot = path.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : path.substr(0, dot);
}

}  // namespace

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> cost(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) cost[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) cost[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = cost[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      cost[i][j] = std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1, replaced});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
      }
    }
  }
  return cost[a.size()][b.size()];
}

std::string NearestKey(std::string_view unknown_path, const std::vector<std::string>& candidate_paths) {
  if (unknown_path.size() > kLengthMax) return "";
  const std::string_view name = LastPart(unknown_path);
  std::string best;
  size_t best_cost = std::max<size_t>(2, name.size() / 3) + 1;  // more edits than this is no likeness
  for (const std::string& candidate : candidate_paths) {
    const bool same_section = SectionOf(candidate) == SectionOf(unknown_path);
    // A wrong section is one more mistake than a misspelt name alone.
    const size_t cost = EditDistance(name, LastPart(candidate)) + (same_section ? 0 : 1);
    if (cost < best_cost) {
      best = candidate;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace longspan::jobfile
