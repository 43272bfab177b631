#include "worker/trainer/evaluate/evaluation_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <vector>

#include "worker/trainer/evaluate/heat_map.h"
#include "worker/trainer/evaluate/longbench_tasks.h"

namespace longspan::trainer {
namespace {

using nlohmann::json;

constexpr const char* kModels[] = {"base", "rescaled", "extended", "merged"};
constexpr std::string_view kLongBench = "longbench/";

std::vector<json> RowsOf(const json& evaluation, const char* list, const std::function<bool(const json&)>& wanted) {
  std::vector<json> rows;
  for (const json& row : evaluation.value(list, json::array())) {
    if (wanted(row)) rows.push_back(row);
  }
  return rows;
}

std::vector<std::string> ModelsOf(const std::vector<json>& rows) {
  std::vector<std::string> models;
  for (const char* model : kModels) {
    const bool there =
        std::any_of(rows.begin(), rows.end(), [model](const json& row) { return row["model"] == model; });
    if (there) models.emplace_back(model);
  }
  return models;
}

// A table with a line for every value of `key` and a column for every model.
std::string Table(const std::vector<json>& rows, const char* heading,
                  const std::function<std::string(const json&)>& key,
                  const std::function<std::string(const json&)>& cell) {
  const std::vector<std::string> models = ModelsOf(rows);
  std::string text = fmt::format("| {} |", heading);
  for (const std::string& model : models) text += fmt::format(" {} |", model);
  text += "\n| --- |";
  for (size_t i = 0; i < models.size(); ++i) text += " ---: |";
  text += "\n";
  std::vector<std::string> keys;  // in the order of the rows
  for (const json& row : rows) {
    if (std::find(keys.begin(), keys.end(), key(row)) == keys.end()) keys.push_back(key(row));
  }
  for (const std::string& name : keys) {
    text += fmt::format("| {} |", name);
    for (const std::string& model : models) {
      const auto found = std::find_if(rows.begin(), rows.end(),
                                      [&](const json& row) { return row["model"] == model && key(row) == name; });
      text += fmt::format(" {} |", found == rows.end() ? "" : cell(*found));
    }
    text += "\n";
  }
  return text;
}

std::string LengthOf(const json& row) { return std::to_string(row.at("length").get<int64_t>()); }
std::string ScoreCell(const json& row) { return fmt::format("{:.2f}", row.at("score").get<double>()); }
std::string TaskName(const json& row) { return row.at("task").get<std::string>().substr(kLongBench.size()); }

std::string PerplexityCell(const json& row) {
  const json& value = row.at("perplexity");
  return value.is_number() ? fmt::format("{:.4g}", value.get<double>()) : "nan";
}

std::string Percent(const json& row) { return fmt::format("{:.1f} %", row.at("score").get<double>()); }

// The chat template that rows were asked in; empty: plain text.
std::string TemplateOf(const std::vector<json>& rows) {
  const auto asked = std::find_if(rows.begin(), rows.end(), [](const json& row) { return row.contains("template"); });
  return asked == rows.end() ? "" : asked->at("template").get<std::string>();
}

std::string LongBenchSection(const std::vector<json>& rows) {
  std::string text = "\n## LongBench\n\n" + Table(rows, "task", TaskName, ScoreCell);
  std::string tasks, categories;
  for (const std::string& model : ModelsOf(rows)) {
    std::map<std::string, double> scores;
    for (const json& row : rows) {
      if (row["model"] == model) scores[TaskName(row)] = row.at("score").get<double>();
    }
    const LongBenchAverages averages = AverageOf(scores);
    const auto shown = [](double value) { return std::isnan(value) ? std::string() : fmt::format("{:.2f}", value); };
    tasks += fmt::format(" {} |", shown(averages.tasks));
    categories += fmt::format(" {} |", shown(averages.categories));
  }
  text += fmt::format("| **mean of the English tasks** |{}\n| **mean of their categories** |{}\n", tasks, categories);
  text += "\nLongBench's prompts and scores, 0 to 100; answers lie beside, in its own format.";
  if (const std::string name = TemplateOf(rows); !name.empty()) {
    text += fmt::format(" Asked in the chat template `{}`, save for few-shot and code tasks.", name);
  }
  return text + "\n";
}

std::string ConversationsSection(const std::vector<json>& rows) {
  std::string text = "\n## Conversations\n\nAnswered turn by turn, for an outside judge: **no judge is included**.\n\n";
  for (const json& row : rows) {
    text += fmt::format("- {}: {} conversations, {} turns, in `{}`\n", row.at("model").get<std::string>(),
                        row.at("conversations").get<int64_t>(), row.at("turns").get<int64_t>(),
                        row.at("answers").get<std::string>());
  }
  const std::string name = TemplateOf(rows);
  if (!name.empty()) text += fmt::format("\nAsked in the chat template `{}`.\n", name);
  return text;
}

HeatMap PasskeyMap(const std::vector<json>& rows, const std::string& model) {
  HeatMap map;
  map.title = "Passkey retrieval, " + model;
  map.column_label = "length (tokens)";
  map.row_label = "depth of the key";
  for (const json& row : rows) map.columns.push_back(LengthOf(row));
  for (const json& depth : rows.front().at("depths")) {
    map.rows.push_back(fmt::format("{:.0f} %", depth.at("depth").get<double>() * 100));
  }
  map.values.assign(map.rows.size(), std::vector<std::optional<double>>(map.columns.size()));
  for (size_t column = 0; column < rows.size(); ++column) {
    for (size_t place = 0; place < map.rows.size(); ++place) {
      const json& cell = rows[column].at("depths").at(place);
      map.values[place][column] = cell.at("right").get<double>() / cell.at("trials").get<double>();
    }
  }
  return map;
}

bool IsPasskey(const json& row) { return row.at("task") == "passkey"; }

}  // namespace

std::map<std::string, std::string> PasskeyPictures(const json& evaluation) {
  std::map<std::string, std::string> pictures;
  for (const char* model : kModels) {
    std::vector<json> rows =
        RowsOf(evaluation, "tasks", [model](const json& row) { return IsPasskey(row) && row.at("model") == model; });
    if (rows.empty()) continue;
    std::sort(rows.begin(), rows.end(), [](const json& a, const json& b) { return a.at("length") < b.at("length"); });
    pictures[fmt::format("passkey-{}.svg", model)] = DrawHeatMap(PasskeyMap(rows, model));
  }
  return pictures;
}

std::string EvaluationMarkdown(const json& evaluation) {
  std::string text = fmt::format("# Evaluation of {}\n", evaluation.value("job", ""));
  text += fmt::format("\nOf {}, with full attention.\n", evaluation.value("checkpoint", "") == "none"
                                                             ? "`" + evaluation.value("model_path", "") + "`"
                                                             : "checkpoint " + evaluation.value("checkpoint", ""));
  const auto every = [](const json&) { return true; };
  if (const auto rows = RowsOf(evaluation, "rows", every); !rows.empty()) {
    std::set<std::string> protocols;
    for (const json& row : rows) protocols.insert(row.at("protocol").get<std::string>());
    for (const std::string& protocol : protocols) {
      const auto own = RowsOf(evaluation, "rows", [&](const json& row) { return row.at("protocol") == protocol; });
      text +=
          fmt::format("\n## Perplexity, protocol `{}`\n\n{}", protocol, Table(own, "tokens", LengthOf, PerplexityCell));
    }
  }
  if (const auto rows = RowsOf(evaluation, "tasks", IsPasskey); !rows.empty()) {
    text += "\n## Passkey retrieval\n\n" + Table(rows, "tokens", LengthOf, Percent) + "\n";
    for (const auto& [name, picture] : PasskeyPictures(evaluation)) text += fmt::format("![{}]({})\n", name, name);
  }
  const auto topics = RowsOf(evaluation, "tasks", [](const json& row) { return row.at("task") == "topics"; });
  if (!topics.empty()) text += "\n## Topic retrieval\n\n" + Table(topics, "tokens", LengthOf, Percent);
  const auto longbench = RowsOf(
      evaluation, "tasks", [](const json& row) { return row.at("task").get<std::string>().starts_with(kLongBench); });
  if (!longbench.empty()) text += LongBenchSection(longbench);
  const auto talks = RowsOf(evaluation, "tasks", [](const json& row) { return row.at("task") == "conversations"; });
  if (!talks.empty()) text += ConversationsSection(talks);
  return text;
}

}  // namespace longspan::trainer
