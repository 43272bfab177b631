// One rendered record for people: dataset.json, the run card and `longspan describe` show it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "worker/trainer/data/chat_template.h"

namespace longspan::trainer {

// [{"part": "prompt", "text": "..."}, {"part": "answer", "text": "..."}, ...]: what is read and what is scored, in
// turns. Long texts are cut in their middle and say so; of a long conversation the first turns are kept, and a last
// entry of part "more" says how much is missing. A few thousand bytes at most.
nlohmann::json ExampleOf(const Rendering& rendering);

// The same as lines, each behind "prompt | ", "answer | " or "more   | "; many lines go without those in the middle and
// say so. Control characters are made visible, so that a record cannot act on a terminal. Empty when `example` is no
// such list.
std::string ExampleLines(const nlohmann::json& example);

}  // namespace longspan::trainer
