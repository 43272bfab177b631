// Which ranks should exist on a worker. Follows from the stored rows alone, so a restart of the server changes
// none of them.
#include <fmt/format.h>

#include "server/core/core_state.h"

namespace longspan::core {
namespace {

constexpr size_t kRecordedCheckpointsMax = 8;

// FNV-1a of 64 bits: not against malice, only against sending again what the worker has.
class Hash {
 public:
  void Add(const std::string& text) {
    Add(static_cast<int64_t>(text.size()));
    for (const char c : text) AddByte(static_cast<unsigned char>(c));
  }
  void Add(int64_t number) {
    for (int shift = 0; shift < 64; shift += 8)
      AddByte(static_cast<unsigned char>(static_cast<uint64_t>(number) >> shift));
  }
  uint64_t value() const { return value_; }

 private:
  void AddByte(unsigned char byte) { value_ = (value_ ^ byte) * 1099511628211ull; }
  uint64_t value_ = 14695981039346656037ull;
};

void AddRank(Hash& hash, const DesiredRank& rank) {
  for (const std::string* text : {&rank.job_id.value(), &rank.command, &rank.spec_json, &rank.folder, &rank.resume_from,
                                  &rank.manifest_sha256, &rank.store_address}) {
    hash.Add(*text);
  }
  for (const int64_t number :
       {rank.attempt, rank.rank, rank.world_size, rank.slot, static_cast<int64_t>(rank.action), rank.threads,
        absl::ToInt64Milliseconds(rank.stop_grace), static_cast<int64_t>(rank.recorded_checkpoints.size())}) {
    hash.Add(number);
  }
  for (const std::string& name : rank.recorded_checkpoints) hash.Add(name);
}

}  // namespace

DesiredRank Core::State::MakeDesired(const JobEntry& entry, const Attempt& attempt, const Rank& rank) const {
  DesiredRank desired;
  desired.job_id = attempt.job_id;
  desired.attempt = attempt.number;
  desired.rank = rank.rank;
  desired.world_size = static_cast<int64_t>(attempt.ranks.size());
  desired.slot = rank.slot;
  desired.command = attempt.command;
  desired.spec_json = entry.job.spec_json;
  desired.folder = entry.job.folder;
  desired.resume_from = attempt.resumed_from;
  desired.manifest_sha256 = attempt.manifest_sha256;
  if (rank.rank != 0) desired.store_address = attempt.store_address;
  desired.action = attempt.stop_time == kNever ? DesiredRank::Action::kRun : DesiredRank::Action::kStop;
  desired.threads = entry.job.threads_per_slot;
  desired.stop_grace = entry.job.state == JobState::kCancelling ? options_.kill_grace : options_.checkpoint_grace;
  for (auto it = entry.checkpoints.rbegin(); it != entry.checkpoints.rend(); ++it) {
    if (it->attempt != attempt.number || desired.recorded_checkpoints.size() == kRecordedCheckpointsMax) break;
    desired.recorded_checkpoints.push_back(it->name);
  }
  return desired;
}

DesiredRanks Core::State::Desired(const WorkerEntry& entry) const {
  DesiredRanks desired;
  Hash hash;
  for (const auto& [job_id, number, rank_number] : entry.ranks) {
    const JobEntry& job = jobs_.at(job_id);
    const Attempt& attempt = job.attempts.at(number);
    const Rank& rank = attempt.ranks.at(rank_number);
    if (!IsLive(attempt) || rank.exited) continue;
    desired.ranks.push_back(MakeDesired(job, attempt, rank));
    AddRank(hash, desired.ranks.back());
  }
  // The count of placements tells a set from an equal one before something was placed and taken back in between: a
  // worker that acts on the newer one has surely dropped that. The start of this process tells a report from before it,
  // whose sequence number is no longer known, from one that answers to what this process said.
  desired.fingerprint =
      fmt::format("{:016x}-{}-{:x}", hash.value(), entry.worker.placements, absl::ToUnixNanos(restart_time_));
  return desired;
}

const std::string& Core::State::Fingerprint(const WorkerEntry& entry) const {
  if (!entry.fingerprint) entry.fingerprint = Desired(entry).fingerprint;
  return *entry.fingerprint;
}

}  // namespace longspan::core
