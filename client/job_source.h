// Reads the job file a user names: YAML or JSON, a file or standard input, with --set changes on top.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "client/client.h"
#include "proto/jobfile/job_spec.h"

namespace longspan::client {

// Relative paths in the file are taken from its folder (for "-" and for --set: from the working folder). `changes` are
// "training.steps=10", the value in YAML. Throws CommandError with every mistake, each with the file's name and line.
jobfile::JobSpec ReadJobFile(const std::string& path, const std::vector<std::string>& changes,
                             const Environment& environment);

// The same for a document that a command has made; `name` stands for the file in messages. Relative paths are taken
// from the working folder.
jobfile::JobSpec SpecOfDocument(const std::string& name, nlohmann::json document,
                                const std::vector<std::string>& changes);

}  // namespace longspan::client
