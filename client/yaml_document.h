// YAML as a JSON document with the lines of its keys.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "proto/jobfile/job_file.h"

namespace longspan::client {

struct YamlDocument {
  nlohmann::json document;
  std::map<std::string, int, std::less<>> line_of;  // key path -> line, 1-based
  std::vector<jobfile::Mistake> mistakes;           // syntax, keys written twice
};

// Never throws. Plain scalars are read by YAML's core schema (null, true, false, whole and other numbers; the rest is
// text); quoted ones are text.
YamlDocument ParseYaml(const std::string& text);

}  // namespace longspan::client
