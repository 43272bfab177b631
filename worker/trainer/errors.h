// What ends the trainer, one type per exit code. Thrown anywhere, caught once in main, which prints what() as the
// `failed` line. A message says what is wrong, where, and what would be right, in one line and one voice: `cannot read
// X: ...`.
#pragma once

#include <stdexcept>
#include <string>

namespace longspan::trainer {

enum class ExitCode {
  kDone = 0,
  kBadSpec = 2,
  kUserData = 10,
  kResource = 20,
  kInfrastructure = 30,
  kStopped = 40,  // on request, after a checkpoint
};

// The common base; throw one of the four below.
class TrainerError : public std::runtime_error {
 public:
  TrainerError(ExitCode exit_code, const std::string& message) : std::runtime_error(message), exit_code_(exit_code) {}
  ExitCode exit_code() const { return exit_code_; }

 private:
  ExitCode exit_code_;
};

// The job file is wrong, or asks for something that this model or build does not do.
class SpecError : public TrainerError {
 public:
  explicit SpecError(const std::string& message) : TrainerError(ExitCode::kBadSpec, message) {}
};

// The user's files are wrong: model folder, adapter folder, corpus, tokens.
class UserError : public TrainerError {
 public:
  explicit UserError(const std::string& message) : TrainerError(ExitCode::kUserData, message) {}
};

// Out of memory, disk or the like: another machine or smaller sizes may do.
class ResourceError : public TrainerError {
 public:
  explicit ResourceError(const std::string& message) : TrainerError(ExitCode::kResource, message) {}
};

// Another rank, the network or the storage failed: trying again may do.
class InfrastructureError : public TrainerError {
 public:
  explicit InfrastructureError(const std::string& message) : TrainerError(ExitCode::kInfrastructure, message) {}
};

}  // namespace longspan::trainer
