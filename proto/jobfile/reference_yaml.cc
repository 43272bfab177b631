// deploy/examples/reference.yaml, written from the field table.
#include <fmt/format.h>

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

}  // namespace

std::string ReferenceYaml() {
  std::string text = kHead;
  std::string section;
  for (const Field& field : FieldTable()) {
    const std::string& path = field.info.path;
    const size_t dot = path.find('.');
    const std::string own_section = dot == std::string::npos ? "" : path.substr(0, dot);
    if (own_section != section || own_section.empty()) text += "\n";
    if (own_section != section && !own_section.empty()) text += own_section + ":\n";
    section = own_section;
    const std::string indent = own_section.empty() ? "" : "  ";
    text += Comment(field.info, indent);
    text += fmt::format("{}{}: {}\n", indent, path.substr(dot == std::string::npos ? 0 : dot + 1), ValueOf(field));
  }
  return text;
}

}  // namespace longspan::jobfile
