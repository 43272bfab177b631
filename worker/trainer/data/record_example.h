// One rendered record for people: dataset.json, the run card and `longspan describe` show it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "worker/trainer/data/chat_template.h"

namespace longspan::trainer {

// [{"part": "prompt", "text": "..."}, {"part": "answer", "text": "..."}, ...]: what is read and what is scored, in
// turns. Long texts are cut in their middle and say so, so that the whole is a few thousand bytes at most.
nlohmann::json ExampleOf(const Rendering& rendering);

// The same as lines, each behind "prompt | " or "answer | "; empty when `example` is no such list.
std::string ExampleLines(const nlohmann::json& example);

}  // namespace longspan::trainer
