// What the exit status of `longspan` says. Scripts rely on these numbers; README.md and `longspan --help` list them.
#pragma once

namespace longspan::client {

enum ExitCode : int {
  kExitSucceeded = 0,
  kExitFailed = 1,      // the job failed, or something went wrong that no other number covers
  kExitUsage = 2,       // wrong flags, or a job file with mistakes
  kExitConnection = 3,  // no connection to the server, or not allowed in
  kExitTimeout = 4,
  kExitCancelled = 5,  // the job was cancelled
  kExitRefused = 6,    // not found, or the server refused
};

}  // namespace longspan::client
