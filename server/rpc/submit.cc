#include "server/rpc/submit.h"

#include <fmt/format.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "proto/jobfile/job_file.h"
#include "proto/support/check.h"
#include "proto/support/job_spec_messages.h"
#include "server/rpc/grpc_error.h"
#include "server/rpc/job_paths.h"

namespace longspan::rpc {
namespace {

constexpr size_t kRequestIdBytesMax = 128;
// A spec is stored with each job and sent to each rank; sources are the only long part.
constexpr size_t kSpecBytesMax = 512 * 1024;

void CheckRequestId(const v1::SubmitJobRequest& request, std::vector<FieldViolation>* violations) {
  const std::string& id = request.request_id();
  if (id.empty()) {
    if (!request.validate_only()) {
      violations->push_back({"request_id", "is empty; choose one, so that a retry cannot make a second job"});
    }
    return;
  }
  const bool printable = std::all_of(id.begin(), id.end(), [](char letter) { return letter >= 0x20 && letter < 0x7f; });
  if (id.size() > kRequestIdBytesMax || !printable) {
    violations->push_back(
        {"request_id", fmt::format("must be 1 to {} printable ASCII characters", kRequestIdBytesMax)});
  }
}

void Add(const std::vector<jobfile::Mistake>& mistakes, std::vector<FieldViolation>* violations) {
  for (const jobfile::Mistake& mistake : mistakes) {
    violations->push_back({mistake.path.empty() ? "spec" : "spec." + mistake.path, mistake.message});
  }
}

// Only what is not the default: a newer server, which knows more keys, must take a retry of the same submission for the
// same.
std::string ContentHash(const jobfile::JobSpec& spec) {
  const nlohmann::json defaults = jobfile::ToDocument(jobfile::JobSpec{}).flatten();
  const nlohmann::json all = jobfile::ToDocument(spec).flatten();
  nlohmann::json said = nlohmann::json::object();
  for (const auto& [key, value] : all.items()) {
    if (!defaults.contains(key) || defaults.at(key) != value) said[key] = value;
  }
  return Sha256Hex(said.dump());
}

core::Job JobOf(const jobfile::JobSpec& spec, const std::string& request_id) {
  core::Job job;
  job.request_id = request_id;
  job.spec_json = jobfile::ToDocument(spec).dump();
  job.content_hash = ContentHash(spec);
  job.name = spec.name;
  job.queue = spec.queue;
  job.priority = spec.priority;
  job.labels = spec.labels;
  job.gang_sizes = jobfile::GangSizes(spec);
  job.requirements.labels = spec.resources.require;
  job.requirements.memory_bytes_min = spec.resources.memory_bytes_min.value_or(0);
  job.threads_per_slot = spec.resources.threads_per_slot;
  job.max_attempts = spec.limits.max_attempts;
  if (spec.limits.max_run_time_seconds) job.max_run_time = absl::Seconds(*spec.limits.max_run_time_seconds);
  return job;
}

}  // namespace

std::string Sha256Hex(const std::string& text) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  std::string hex;
  for (const unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

jobfile::JobSpec CheckSpec(bool has_spec, const v1::JobSpec& message, const std::vector<std::filesystem::path>& roots,
                           std::vector<FieldViolation>* violations) {
  if (!has_spec) {
    violations->push_back({"spec", "is missing; say what the job shall do"});
    return {};
  }
  if (message.ByteSizeLong() > kSpecBytesMax) {
    violations->push_back(
        {"spec", fmt::format("has more than {} bytes; name folders instead of single files", kSpecBytesMax)});
    return {};
  }
  jobfile::Converted converted = jobfile::FromMessage(message);
  Add(converted.mistakes, violations);
  Add(jobfile::Validate(converted.spec), violations);
  for (FieldViolation& violation : CheckJobPaths(converted.spec, roots)) {
    violation.field = "spec." + violation.field;
    violations->push_back(std::move(violation));
  }
  return std::move(converted.spec);
}

CheckedSubmit CheckSubmit(const v1::SubmitJobRequest& request, const std::vector<std::filesystem::path>& roots) {
  std::vector<FieldViolation> violations;
  CheckRequestId(request, &violations);
  const jobfile::JobSpec spec = CheckSpec(request.has_spec(), request.spec(), roots, &violations);
  if (!violations.empty()) return {InvalidFields("the job cannot be accepted:", violations), {}, {}};
  return {grpc::Status::OK, spec, JobOf(spec, request.request_id())};
}

std::string NewJobId() {
  constexpr char kAlphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";  // 32 letters that are not taken for one another
  unsigned char bytes[16];
  CHECK(RAND_bytes(bytes, sizeof(bytes)) == 1);
  std::string id = "job-";
  for (const unsigned char byte : bytes) id += kAlphabet[byte % 32];
  return id;
}

}  // namespace longspan::rpc
