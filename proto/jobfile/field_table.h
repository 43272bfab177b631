// The table behind the parser: one row per key. Private to this folder.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "proto/jobfile/job_file.h"

namespace longspan::jobfile {

struct Field {
  FieldInfo info;
  bool required = false;             // by everyone but the probe and evaluations, see the next two
  bool needed_by_probe = false;      // a required key that the probe needs too
  bool needed_by_evaluation = true;  // a required key that kind evaluate needs too
  bool ignored_by_probe = false;
  bool may_be_null = false;  // null says "absent", as leaving the key out does

  // Sets the field from a value of the document; returns what is wrong with the value's type, empty when nothing.
  std::function<std::string(const nlohmann::json& value, JobSpec& spec)> read;
  // The value for the canonical document; null when absent.
  std::function<nlohmann::json(const JobSpec& spec)> write;
  // What is wrong with the field's value on its own; empty when nothing. Not asked about an absent field.
  std::function<std::string(const JobSpec& spec)> check;
  // Whether a required field has no value.
  std::function<bool(const JobSpec& spec)> missing;
};

// In the order of reference.yaml.
const std::vector<Field>& FieldTable();

// nullptr when there is no such key.
const Field* FindField(std::string_view path);
bool IsSection(std::string_view path);

// A value as text for a message: JSON, cut to a readable length.
std::string Shown(const nlohmann::json& value);

}  // namespace longspan::jobfile
