// Sends a job and follows it: what `submit` and `evaluate` share.
#pragma once

#include <string>

#include "client/command.h"
#include "proto/jobfile/job_spec.h"

namespace longspan::client {

struct SubmitSpecOptions {
  std::string what;        // stands for the job in messages: the name of its file
  std::string request_id;  // empty: a new one
  std::string timeout;     // with `wait`
  bool wait = false;
  bool validate_only = false;
};

// The exit code of the command. Throws CommandError.
int SubmitSpec(const Context& context, const jobfile::JobSpec& spec, const SubmitSpecOptions& options);

}  // namespace longspan::client
