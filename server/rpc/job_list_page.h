// One page of ListJobs: its filters and where it begins. Pure.
#pragma once

#include <cstddef>
#include <map>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "longspan/v1/training_service.pb.h"
#include "server/core/types.h"

namespace longspan::rpc {

struct JobListPage {
  // INVALID_ARGUMENT for a size below 0 and for a token that was not made for these filters.
  static absl::StatusOr<JobListPage> Of(const v1::ListJobsRequest& request);

  bool Matches(const core::Job& job) const;
  // For the page that begins after `last`.
  std::string TokenAfter(const JobId& last) const;

  JobId before;  // empty: from the newest
  size_t size = 100;
  std::set<core::JobState> states;  // empty: all
  std::string queue;                // empty: all
  std::map<std::string, std::string> labels;
};

}  // namespace longspan::rpc
