// The phases of a job, in order: prepare, train, evaluate, export. What main.cc starts after it has read the flags.
//
//   command     runs                                     from
//   prepare     prepare
//   train       prepare, train                           the newest valid checkpoint, or the one that is named
//   evaluate    prepare, evaluate                        the same
//   export      export                                   the same
//   run         all four                                 each is skipped when its result is there already
//
// Ranks other than 0 wait for the prepared data, train and evaluate with the others, and leave the export to rank 0.
// Throws what errors.h lists; the result is an exit code.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/session.h"

namespace longspan::trainer {

inline constexpr const char* kVersion = "0.1.0";

struct RunOptions {
  std::string command;  // "prepare" | "train" | "evaluate" | "export" | "run"
  jobfile::JobSpec spec;
  std::filesystem::path work;
  std::string checkpoint;  // --checkpoint NAME; empty: the newest valid one

  int64_t rank = 0;
  int64_t world_size = 1;
  std::string store;              // --store HOST:PORT; empty under the service, which hands the address on
  std::string advertise_address;  // of this machine
  int64_t threads = 1;
  std::optional<int64_t> slot_memory_bytes;  // absent: all that the device has
  std::string device = "auto";               // device.h
  std::string collectives = "auto";          // device.h: between ranks on GPUs

  // Under the service.
  std::string job;                         // empty: by hand, the job's name is used
  int64_t attempt = 0;                     // 0: one more than the newest attempt that left a checkpoint
  std::optional<std::string> resume_from;  // exactly this checkpoint; "none": from the start; absent: by hand
  std::string manifest_sha256;             // of resume_from

  std::filesystem::path dump_gradients;
};

ExitCode Run(const RunOptions& options, Session& session);

}  // namespace longspan::trainer
