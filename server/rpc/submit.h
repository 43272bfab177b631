// From a SubmitJob request to what the core takes. Pure but for the file system look-ups of CheckJobPaths; thread-safe.
#pragma once

#include <grpcpp/support/status.h>

#include <filesystem>
#include <string>
#include <vector>

#include "longspan/v1/training_service.pb.h"
#include "proto/jobfile/job_spec.h"
#include "server/core/types.h"
#include "server/rpc/grpc_error.h"

namespace longspan::rpc {

// The spec of a request, and every mistake in it, with its path from the request's root.
jobfile::JobSpec CheckSpec(bool has_spec, const v1::JobSpec& message, const std::vector<std::filesystem::path>& roots,
                           std::vector<FieldViolation>* violations);

struct CheckedSubmit {
  grpc::Status status;  // INVALID_ARGUMENT with every mistake at once
  jobfile::JobSpec spec;
  core::Job job;  // without id, folder and submit time
};
CheckedSubmit CheckSubmit(const v1::SubmitJobRequest& request, const std::vector<std::filesystem::path>& roots);

// 64 digits.
std::string Sha256Hex(const std::string& text);

// "job-" and 16 random letters and digits, about 80 bits.
std::string NewJobId();

}  // namespace longspan::rpc
