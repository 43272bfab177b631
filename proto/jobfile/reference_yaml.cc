// deploy/examples/reference.yaml, written from the field table.
#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "proto/jobfile/field_table.h"

namespace longspan::jobfile {
namespace {

constexpr char kHead[] =
    R"(# Every key of a job file, with its type, unit, range and default. This file is the definition: it is written from the
# parser's own table (proto/jobfile), and a test keeps the two and the JobSpec message equal.
#
# It is a valid job file. Values are the defaults; null says the same as leaving the key out; the required keys hold examples.
# Relative paths are taken from the folder of the job file. An unknown key is an error.
)";

// Default texts are single words, which YAML reads without quotes.
std::string Unquoted(const std::string& value) {
  return value.starts_with('"') ? value.substr(1, value.size() - 2) : value;
}

std::string ValueOf(const Field& field) {
  const std::string& path = field.info.path;
  if (path == "name") return "extend-my-model";
  if (path == "model.path") return "models/llama";
  if (path == "data.sources") return "[corpus.txt]";
  if (path == "context_length") return "8192";
  if (field.info.default_value.starts_with("absent: ")) return "null";
  return Unquoted(field.info.default_value);
}

std::string Comment(const FieldInfo& info, const std::string& indent) {
  std::string facts = info.type;
  if (!info.unit.empty()) facts += ", " + info.unit;
  if (!info.range.empty()) facts += "; " + info.range;
  std::string last = info.default_value.starts_with("absent: ") ? info.default_value
                     : info.default_value == "required"         ? "required"
                                                                : "default " + Unquoted(info.default_value);
  return fmt::format("{0}# {1}\n{0}#   {2}; {3}\n", indent, info.summary, facts, last);
}

// "training.steps" is training and steps.
std::vector<std::string> PartsOf(const std::string& path) {
  std::vector<std::string> parts;
  std::istringstream in(path);
  for (std::string part; std::getline(in, part, '.');) parts.push_back(part);
  return parts;
}

}  // namespace

std::string ReferenceYaml() {
  std::string text = kHead;
  std::vector<std::string> open;  // sections around the last key
  for (const Field& field : FieldTable()) {
    const std::vector<std::string> parts = PartsOf(field.info.path);
    const std::vector<std::string> sections(parts.begin(), parts.end() - 1);
    if (sections.empty() || open.empty() || sections.front() != open.front()) text += "\n";
    const size_t common =
        std::mismatch(sections.begin(), sections.end(), open.begin(), open.end()).first - sections.begin();
    for (size_t depth = common; depth < sections.size(); ++depth) {
      text += std::string(2 * depth, ' ') + sections[depth] + ":\n";
    }
    open = sections;
    const std::string indent(2 * sections.size(), ' ');
    text += Comment(field.info, indent);
    text += fmt::format("{}{}: {}\n", indent, parts.back(), ValueOf(field));
  }
  return text;
}

}  // namespace longspan::jobfile
