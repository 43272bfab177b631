// The JobSpec message and the job file's values, one made from the other by reflection: names of fields are keys,
// enumeration values lose their prefix and their capitals, durations are "2h30m", absence stays absence. Pure,
// thread-safe.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "longspan/v1/job.pb.h"
#include "proto/jobfile/job_file.h"

namespace longspan::jobfile {

// Defaults are written out, absent optionals stay absent.
v1::JobSpec ToMessage(const JobSpec& spec);

struct Converted {
  JobSpec spec;                   // fields with a mistake keep their defaults
  std::vector<Mistake> mistakes;  // values that no job file could hold; ranges are for Validate
};
Converted FromMessage(const v1::JobSpec& message);

// The message as a job file document, only what is set in it.
nlohmann::json ToDocument(const v1::JobSpec& message);

}  // namespace longspan::jobfile
