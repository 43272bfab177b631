// Decides which ranks of a worker should exist, from what the server wants and what the processes did, and keeps what
// the server has yet to hear of them.
//
// Pure: reads no clock and touches no process; `now` (a reading of CLOCK_BOOTTIME) comes in, effects go out and are to
// be carried out in order. Not thread-safe; the daemon's loop is its only caller. Times of other machines never enter.
//
// Rules it keeps:
// - At most one attempt per job. A newer attempt ends the ranks of the older one, and starts only when they are gone; a
// rank
//   of an older attempt is never started. A rank that ended is never started again in the same attempt.
// - A slot is given to a new rank only after the process that had it is gone.
// - The lease counts from when the request was sent. When it runs out every rank is killed: SIGTERM, kill grace,
// SIGKILL.
//   So does a rank die that the server no longer wants, or whose attempt it refuses (fenced).
// - A rank is remembered until the server has acknowledged its end.
#pragma once

#include <absl/time/time.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "longspan/v1/fleet_service.pb.h"
#include "proto/trainer_lines/trainer_lines.h"
#include "worker/daemon/exit_classification.h"
#include "worker/daemon/rank_key.h"

namespace longspan::worker {

// Start the process. Answer with OnSpawnFailed or, sooner or later, OnExit.
struct SpawnRank {
  RankKey key;
  v1::DesiredRank desired;
};
struct SendLine {
  RankKey key;
  lines::ToTrainer line;
};
// To the whole process group.
struct SignalRank {
  RankKey key;
  int signal = 0;
};
// The supervisor is done with this rank: its files may go once its log is uploaded.
struct ForgetRank {
  RankKey key;
};
// For the daemon's log.
struct Note {
  bool warning = false;
  std::string text;
};
using Effect = std::variant<SpawnRank, SendLine, SignalRank, ForgetRank, Note>;
using Effects = std::vector<Effect>;

struct SupervisorOptions {
  absl::Duration kill_grace = absl::Seconds(10);           // from SIGTERM to SIGKILL
  absl::Duration stop_grace_default = absl::Seconds(120);  // when the server does not say
  absl::Duration progress_interval = absl::Seconds(1);  // progress alone causes no more reports than one in this time
};

class Supervisor {
 public:
  // Samples of a rank kept until acknowledged; above that every second one of the older half goes.
  static constexpr size_t kSamplesMax = 200;
  // Evaluation rows, artifacts and unacknowledged checkpoints of one rank; more are dropped.
  static constexpr int kRowsMax = 1000;
  // Warnings of one rank that the server is told, and of each its first bytes; the log has them all.
  static constexpr int kWarningsMax = 20;
  static constexpr size_t kWarningBytesMax = 1024;
  // Jobs whose ended ranks are remembered after the server forgot them, so that a late answer starts nothing twice.
  static constexpr size_t kEndedJobsMax = 256;

  explicit Supervisor(SupervisorOptions options) : options_(options) {}

  // The server's answer to a report sent at `sent`. The caller drops answers older than one it has already passed on.
  Effects OnAnswer(const v1::SynchronizeResponse& answer, absl::Time sent, absl::Time now);

  // A decoded line of a trainer. `wall` is stamped on the first progress sample of a rank; later ones go on from it by
  // `now`, so that a clock that is set looks like no long step.
  Effects OnLine(const RankKey& key, const lines::FromTrainer& line, absl::Time now, absl::Time wall);

  Effects OnSpawnFailed(const RankKey& key, const std::string& message, absl::Time now);

  // The process is gone, and every line it wrote has been passed on.
  Effects OnExit(const RankKey& key, const ProcessEnd& end, absl::Time now);

  // Leases and graces. To be called at Deadline(), and before anything else when the caller wakes up.
  Effects OnTick(absl::Time now);

  // The daemon is shutting down: no new ranks, the running ones checkpoint and stop within `grace`.
  Effects BeginLeaving(absl::Duration grace, absl::Time now);

  // When OnTick next has something to do; InfiniteFuture for never.
  absl::Time Deadline() const;

  // When the next report should leave because something changed; InfiniteFuture when nothing did.
  absl::Time ChangeDue() const { return change_due_; }
  // The same for progress alone, which may wait longer.
  absl::Time ProgressDue() const { return progress_due_; }

  // Fills ranks, leaving, desired_fingerprint and accepts_unchanged. The report counts as sent.
  void FillReport(absl::Time now, v1::SynchronizeRequest* request);

  // No process lives or waits, and the server knows of every end.
  bool Idle() const { return ranks_.empty(); }
  absl::Time lease_until() const { return lease_until_; }
  std::map<v1::RankReport::State, int64_t> CountRanks() const;

 private:
  enum class Process { kWaiting, kAlive, kEnded };

  struct Rank {
    v1::DesiredRank desired;
    bool wanted = true;       // in the newest answer
    bool superseded = false;  // fenced, or of an older attempt: not reported any more
    Process process = Process::kWaiting;
    v1::RankReport report;  // all but expect_no_progress and the exit's age
    size_t evaluations_acknowledged = 0;
    size_t artifacts_acknowledged = 0;
    size_t warnings_acknowledged = 0;
    int64_t samples_numbered = 0;
    std::set<std::string> announced;  // checkpoints ever announced
    std::set<std::string> recorded;   // checkpoint_recorded lines already sent
    bool rendezvous_sent = false;
    bool stop_sent = false;
    absl::Time stop_deadline = absl::InfiniteFuture();
    absl::Time kill_deadline = absl::InfiniteFuture();
    absl::Time expect_until = absl::InfinitePast();
    std::optional<absl::Duration> wall_offset;  // from `now`, at its first sample
    absl::Time ended_at = absl::InfinitePast();
    LastWords words;
  };
  using Ranks = std::map<RankKey, Rank>;

  // The ranks of a job's newest attempt that ended; no process of them starts again.
  struct EndedJob {
    int64_t attempt = 0;
    std::set<int64_t> ranks;
    bool whole = false;  // fenced: no rank of this attempt
    uint64_t age = 0;
  };

  void Acknowledge(const v1::RankAcknowledgement& acknowledgement, absl::Time now, Effects* effects);
  void WantRanks(const v1::SynchronizeResponse& answer, absl::Time now, Effects* effects);
  void WantRank(const v1::DesiredRank& desired, Effects* effects);
  void DropUnwanted(absl::Time now, Effects* effects);
  void EndOlderAttempts(absl::Time now, Effects* effects);
  void ObeyDesired(Ranks::iterator rank, absl::Time now, Effects* effects);
  void SpawnWhatCan(absl::Time now, Effects* effects);
  bool MaySpawn(const RankKey& key, const Rank& rank) const;
  void RequestStop(const RankKey& key, Rank& rank, std::string_view reason, absl::Duration grace, absl::Time now,
                   Effects* effects);
  void Terminate(const RankKey& key, Rank& rank, std::string_view reason, absl::Time now, Effects* effects);
  void ExpireLease(absl::Time now, Effects* effects);
  lines::Lease LeaseLine(absl::Time now) const;
  void End(Rank& rank, v1::RankExit exit, absl::Time now);
  Ranks::iterator Forget(Ranks::iterator rank, Effects* effects);
  EndedJob& RememberEnded(const RankKey& key);
  int64_t NewestAttempt(const std::string& job_id) const;
  bool EndedBefore(const RankKey& key) const;
  void ReportNow(absl::Time now) { change_due_ = std::min(change_due_, now); }
  void ReportProgress(absl::Time now) {
    progress_due_ = std::min(progress_due_, std::max(now, last_report_ + options_.progress_interval));
  }
  void TakeLine(const RankKey& key, Rank& rank, const lines::FromTrainer& line, absl::Time now, absl::Time wall,
                Effects* effects);
  void TakeProgress(Rank& rank, const lines::Progress& progress, absl::Time now, absl::Time wall);

  const SupervisorOptions options_;
  Ranks ranks_;
  std::map<std::string, EndedJob> ended_;
  uint64_t ended_clock_ = 0;
  std::string fingerprint_;
  absl::Time lease_until_ = absl::InfinitePast();
  absl::Time change_due_ = absl::InfinitePast();
  absl::Time progress_due_ = absl::InfiniteFuture();
  absl::Time last_report_ = absl::InfinitePast();
  bool leaving_ = false;
};

}  // namespace longspan::worker
