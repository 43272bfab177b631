#include "server/rpc/update_job.h"

#include "proto/jobfile/job_file.h"
#include "server/rpc/grpc_error.h"

namespace longspan::rpc {

CheckedUpdate CheckUpdate(const v1::UpdateJobRequest& request) {
  std::vector<FieldViolation> violations;
  core::UpdateRequested event;
  jobfile::JobSpec spec;
  if (request.has_priority()) event.priority = spec.priority = request.priority();
  event.labels = spec.labels = {request.labels().begin(), request.labels().end()};
  if (request.job_id().empty()) violations.push_back({"job_id", "is empty; give an id, or a name that one job has"});
  if (!request.has_priority() && event.labels.empty()) {
    violations.push_back({"priority", "and labels are both missing; say what shall change"});
  }
  for (const char* key : {"priority", "labels"}) {
    if (const std::string wrong = jobfile::CheckKey(key, spec); !wrong.empty()) violations.push_back({key, wrong});
  }
  if (event.labels.size() > core::kLabelsMax) violations.push_back({"labels", "has more than 64 entries"});
  if (!violations.empty()) return {InvalidFields("the job cannot be changed:", violations), {}};
  return {grpc::Status::OK, std::move(event)};
}

}  // namespace longspan::rpc
