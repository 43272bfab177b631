#include "client/job_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include "client/exit_codes.h"
#include "client/message_json.h"
#include "client/output.h"
#include "proto/support/enum_words.h"

namespace longspan::client {
namespace {

constexpr const char* kModels[] = {"base", "rescaled", "extended", "merged"};
// A worker sends less; this bounds what any server may make of it.
constexpr int64_t kExampleLinesMax = 100;
constexpr size_t kExampleColumnsMin = 20;

std::string PerplexityText(double perplexity) {
  if (!std::isfinite(perplexity)) return fmt::format("{}", perplexity);
  return perplexity < 1e5 ? fmt::format("{:.2f}", perplexity) : fmt::format("{:.2e}", perplexity);
}

// By protocol, length and model.
using EvaluationRows = std::map<std::tuple<std::string, int64_t, std::string>, v1::EvaluationRow>;

// The newest row of each model, length and protocol: of perplexities, or of tasks.
EvaluationRows NewestRows(const v1::Job& job, bool tasks) {
  EvaluationRows rows;
  for (const v1::EvaluationRow& row : job.evaluations()) {
    if ((row.examples() > 0) != tasks) continue;
    auto& kept = rows[{row.protocol(), row.length(), row.model()}];
    if (kept.model().empty() || row.step() >= kept.step()) kept = row;
  }
  return rows;
}

// The models that were measured at all, each a column.
std::vector<std::string> ModelsIn(const EvaluationRows& rows) {
  std::vector<std::string> models;
  for (const char* model : kModels) {
    if (std::any_of(rows.begin(), rows.end(), [&](const auto& row) { return row.second.model() == model; })) {
      models.emplace_back(model);
    }
  }
  return models;
}

void PrintArtifacts(std::ostream& out, const v1::Job& job) {
  for (const v1::Artifact& artifact : job.artifacts()) {
    if (artifact.kind() == "dataset") continue;  // shared between jobs, no result
    out << fmt::format("{:<13} {}\n", ArtifactName(artifact.kind()), WithoutControls(artifact.path()));
  }
}

// "prompt | text"; what does not fit the width (0: no limit) goes on under the text.
void PrintMarkedLine(std::ostream& out, const std::string& line, int width) {
  const size_t bar = line.substr(0, 12).find(" | ");
  const std::string mark = "  " + line.substr(0, bar == std::string::npos ? 0 : bar + 3);
  const std::string text = line.substr(mark.size() - 2);
  const auto room = static_cast<size_t>(width) > mark.size() + kExampleColumnsMin
                        ? static_cast<size_t>(width) - mark.size()
                        : std::max<size_t>(text.size(), 1);
  const std::string under =
      std::string(mark.size() < 5 ? mark.size() : mark.size() - 3, ' ') + (mark.size() < 5 ? "" : " | ");
  bool first = true;
  for (const std::string& piece : Folded(text, room)) {
    out << (std::exchange(first, false) ? mark : under) << piece << "\n";
  }
}

double SecondsBetween(const google::protobuf::Timestamp& begin, const google::protobuf::Timestamp& end) {
  return std::chrono::duration<double>(TimeOf(end) - TimeOf(begin)).count();
}

}  // namespace

std::string ArtifactName(const std::string& kind) {
  if (kind == "adapter") return "Adapter";
  if (kind == "merged") return "Merged model";
  if (kind == "run_card") return "Run card";
  if (kind == "dataset") return "Dataset";
  if (kind == "evaluation") return "Evaluation";
  return kind;
}

void PrintPerplexity(std::ostream& out, const v1::Job& job) {
  const auto rows = NewestRows(job, /*tasks=*/false);
  std::set<std::pair<std::string, int64_t>> lengths;
  std::set<std::string> protocols;
  for (const auto& [key, row] : rows) {
    lengths.emplace(row.protocol(), row.length());
    protocols.insert(row.protocol());
  }
  if (lengths.empty()) return;
  out << "Perplexity by length (full attention; lower is better)\n\n";
  const std::vector<std::string> models = ModelsIn(rows);
  std::vector<std::string> headings = {">tokens"};
  for (const std::string& model : models) headings.push_back(">" + model);
  if (protocols.size() > 1) headings.push_back("protocol");
  Table table(headings);
  for (const auto& [protocol, length] : lengths) {
    std::vector<std::string> cells = {CountText(length)};
    for (const std::string& model : models) {
      const auto found = rows.find({protocol, length, model});
      cells.push_back(found == rows.end() ? "-" : PerplexityText(found->second.perplexity()));
    }
    if (protocols.size() > 1) cells.push_back(protocol);
    table.Add(cells);
  }
  table.Print(out, 0);
}

void PrintScores(std::ostream& out, const v1::Job& job) {
  const auto rows = NewestRows(job, /*tasks=*/true);
  if (rows.empty()) return;
  std::set<std::pair<std::string, int64_t>> lines;
  for (const auto& [key, row] : rows) lines.emplace(row.protocol(), row.length());
  out << "\nScores (0 to 100; higher is better)\n\n";
  const std::vector<std::string> models = ModelsIn(rows);
  std::vector<std::string> headings = {"task", ">tokens"};
  for (const std::string& model : models) headings.push_back(">" + model);
  Table table(headings);
  for (const auto& [task, length] : lines) {
    std::vector<std::string> cells = {WithoutControls(task), CountText(length)};
    for (const std::string& model : models) {
      const auto found = rows.find({task, length, model});
      cells.push_back(found == rows.end() ? "-" : fmt::format("{:.2f}", found->second.score()));
    }
    table.Add(cells);
  }
  table.Print(out, 0);
}

void PrintExample(std::ostream& out, const v1::Job& job, int width) {
  for (const v1::Artifact& artifact : job.artifacts()) {
    if (artifact.excerpt().empty()) continue;
    out << "\nOne record as it is trained; only the answer is scored\n\n";
    std::istringstream lines(artifact.excerpt());
    int64_t count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      if (count < kExampleLinesMax) PrintMarkedLine(out, WithoutControls(line), width);
    }
    if (count > kExampleLinesMax) out << fmt::format("  [... {} further lines ...]\n", count - kExampleLinesMax);
  }
}

void PrintResult(std::ostream& out, const v1::Job& job, const std::vector<CurvePoint>& losses,
                 const CurveShape& shape) {
  const std::string took = job.has_start_time() && job.has_end_time()
                               ? " after " + DurationText(SecondsBetween(job.start_time(), job.end_time()))
                               : "";
  if (job.state() != v1::JOB_STATE_SUCCEEDED) {
    out << fmt::format("\n{} {}{}", job.job_id(), WordOf(job.state()), took);
    if (!job.status_message().empty()) out << ": " << job.status_message();
    out << "\n";
    return;
  }
  out << fmt::format("\n{} SUCCEEDED{}\n\n", job.job_id(), took);
  if (const std::string curve = DrawCurve("Loss (nats per token)", "step", losses, shape); !curve.empty())
    out << curve << "\n";
  PrintPerplexity(out, job);
  PrintScores(out, job);
  out << "\n";
  PrintArtifacts(out, job);
}

std::string WhereItStands(const v1::Job& job) {
  std::string text = WordOf(job.state());
  if (!job.reason().empty() && job.reason() != text) text += ": " + job.reason();
  if (!job.status_message().empty()) text += ": " + job.status_message();
  if (job.queue_position() > 0) text += fmt::format("; position {} of all that wait", job.queue_position());
  return WithoutControls(text);
}

bool IsTerminal(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED || state == v1::JOB_STATE_CANCELLED;
}

int ExitCodeOf(v1::JobState state) {
  if (state == v1::JOB_STATE_SUCCEEDED) return kExitSucceeded;
  return state == v1::JOB_STATE_CANCELLED ? kExitCancelled : kExitFailed;
}

std::string SlotsText(const v1::ResourcesSpec& resources) {
  const int64_t slots = resources.has_slots() ? resources.slots() : 1;
  const int64_t least = resources.has_slots_min() ? resources.slots_min() : slots;
  return least < slots ? fmt::format("{}-{}", least, slots) : std::to_string(slots);
}

std::string UntilText(const google::protobuf::Timestamp& time, std::chrono::system_clock::time_point now) {
  const double seconds = std::chrono::duration<double>(TimeOf(time) - now).count();
  if (seconds < 1) return "soon";
  // An estimate is not good to the second.
  return "in " + (seconds < 60 || seconds >= 3600 ? DurationText(seconds) : fmt::format("{:.0f}m", seconds / 60));
}

std::string AgeText(const google::protobuf::Timestamp& since, std::chrono::system_clock::time_point now) {
  const double seconds = std::chrono::duration<double>(now - TimeOf(since)).count();
  return DurationText(std::max(0.0, seconds)) + " ago";
}

}  // namespace longspan::client
