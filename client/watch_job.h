// Follows a job to its end: events and progress as they come, through restarts of the server.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "client/client.h"
#include "client/connection.h"
#include "client/output.h"

namespace longspan::client {

struct WatchOptions {
  std::string job_id;
  std::optional<std::chrono::seconds> timeout;  // absent: for ever
  OutputFormat format = OutputFormat::kTable;   // JSON and YAML: nothing but the job at its end
};

// Returns the exit code of the job's end, kExitTimeout when the time ran out first. On a terminal there is a progress
// bar that moves in place, elsewhere some twenty plain lines per job. A pause is told and waited through. Throws
// CommandError when the server stays away for two minutes.
int WatchJob(const Connection& connection, const WatchOptions& options, const Environment& environment);

// A --timeout flag; absent when it was not given. Throws CommandError.
std::optional<std::chrono::seconds> ParseTimeout(const std::string& text);

}  // namespace longspan::client
