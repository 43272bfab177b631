#include "server/core/transitions.h"

#include <fmt/format.h>

namespace longspan::core {

bool IsAllowed(JobState from, JobState to) {
  for (const Transition& transition : kTransitions) {
    if (transition.from == from && transition.to == to) return true;
  }
  return false;
}

std::string TransitionsAsMarkdown() {
  std::string text = "| from | to | when |\n| --- | --- | --- |\n";
  for (const Transition& transition : kTransitions) {
    text += fmt::format("| {} | {} | {} |\n", Name(transition.from), Name(transition.to), transition.when);
  }
  return text;
}

}  // namespace longspan::core
