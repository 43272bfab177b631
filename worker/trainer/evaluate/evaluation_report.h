// What people read of an evaluation: evaluation.json as Markdown, and the passkey grids as pictures.
//
// Pure. `evaluation` is the document evaluation.json holds: rows (perplexity), tasks (run_tasks.h).
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace longspan::trainer {

// File names and their contents: passkey-<model>.svg for every model with passkey rows.
std::map<std::string, std::string> PasskeyPictures(const nlohmann::json& evaluation);

// evaluation.md.
std::string EvaluationMarkdown(const nlohmann::json& evaluation);

}  // namespace longspan::trainer
