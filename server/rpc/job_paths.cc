#include "server/rpc/job_paths.h"

#include <fmt/format.h>

#include <algorithm>

namespace longspan::rpc {
namespace {

bool LiesBelow(const std::filesystem::path& path, const std::filesystem::path& root) {
  const auto [root_end, rest] = std::mismatch(root.begin(), root.end(), path.begin(), path.end());
  return root_end == root.end() || (root_end->empty() && std::next(root_end) == root.end());  // "/data/" ends in ""
}

// Links followed as far as the path exists here; the path itself when that cannot be told.
std::filesystem::path Resolved(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::path resolved = std::filesystem::weakly_canonical(path, error);
  return error ? path.lexically_normal() : resolved;
}

std::string ListOf(const std::vector<std::filesystem::path>& roots) {
  std::string text;
  for (const std::filesystem::path& root : roots) text += (text.empty() ? "" : ", ") + root.string();
  return text;
}

void Check(const std::string& field, const std::string& text, const std::vector<std::filesystem::path>& roots,
           std::vector<FieldViolation>* violations) {
  const std::filesystem::path path(text);
  if (!path.is_absolute()) {
    violations->push_back({field, fmt::format("'{}' is relative; give the absolute path as the workers see it", text)});
    return;
  }
  if (std::find(path.begin(), path.end(), "..") != path.end()) {
    violations->push_back({field, fmt::format("'{}' has a part '..'; give the path without it", text)});
    return;
  }
  if (!LiesInRoots(path, roots)) {
    violations->push_back(
        {field, fmt::format("'{}' lies outside the folders this server allows: {}", text, ListOf(roots))});
  }
}

}  // namespace

bool LiesInRoots(const std::filesystem::path& path, const std::vector<std::filesystem::path>& roots) {
  if (roots.empty()) return true;
  return std::any_of(roots.begin(), roots.end(), [&](const std::filesystem::path& root) {
    return LiesBelow(path.lexically_normal(), root.lexically_normal()) && LiesBelow(Resolved(path), Resolved(root));
  });
}

std::vector<FieldViolation> CheckJobPaths(const jobfile::JobSpec& spec,
                                          const std::vector<std::filesystem::path>& roots) {
  std::vector<FieldViolation> violations;
  if (!spec.model.path.empty()) Check("model.path", spec.model.path, roots, &violations);
  for (size_t i = 0; i < spec.data.sources.size(); ++i) {
    Check(fmt::format("data.sources[{}]", i), spec.data.sources[i], roots, &violations);
  }
  if (!spec.method.adapter.empty()) Check("method.adapter", spec.method.adapter, roots, &violations);
  const jobfile::EvaluationSection& evaluation = spec.evaluation;
  if (!evaluation.longbench.path.empty()) {
    Check("evaluation.longbench.path", evaluation.longbench.path, roots, &violations);
  }
  if (!evaluation.conversations.path.empty()) {
    Check("evaluation.conversations.path", evaluation.conversations.path, roots, &violations);
  }
  return violations;
}

}  // namespace longspan::rpc
