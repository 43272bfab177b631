// Which folders of shared storage jobs may name. Thread-safe.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "server/rpc/grpc_error.h"

namespace longspan::rpc {

// Every path of a spec that is not absolute, has a part "..", or lies outside all `roots`. No roots: anywhere is right.
// Where a path exists on this machine its symbolic links are followed first, so that none leads out of the roots.
std::vector<FieldViolation> CheckJobPaths(const jobfile::JobSpec& spec,
                                          const std::vector<std::filesystem::path>& roots);

// Whether a path lies below one of the roots, also behind its links; yes without roots.
bool LiesInRoots(const std::filesystem::path& path, const std::vector<std::filesystem::path>& roots);

}  // namespace longspan::rpc
