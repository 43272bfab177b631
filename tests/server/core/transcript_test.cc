// Runs the transcripts of the core: prose, commands, "----", what came out. LONGSPAN_REWRITE=1 writes what came out
// into the files.
//
//   submit NAME [slots=N | sizes=1,2,4] [priority=N] [queue=Q] [gpu=G] [max_attempts=N] [max_run_time=D] [request=R]
//          [content=C]                                                                            job-NAME
//   worker NAME slots=N           a daemon starts          restart-worker NAME    its process is replaced
//   sync NAME...                  report, answer, and what the daemon does about it ("*": all of them, twice)
//   report NAME                   a report whose answer is lost
//   hold NAME   deliver NAME      a report that arrives late, its answer is lost
//   drop JOB/ATTEMPT/RANK         its daemon lost its lease before it could start the rank; it knows nothing of it
//   rank JOB/ATTEMPT/RANK [running] [exit=N] [signal=N] [class=infrastructure|user|resource] [message=M] [age=D]
//   [phase=P step=N]
//        [checkpoint=NAME@STEP] [store=ADDRESS] [expect=D] [warning=TEXT] [reached=STEP]   what a process does; told at
//        the next sync
//   cancel|pause|resume JOB       drain WORKER [move]      undrain WORKER         advance DURATION
//   update JOB [priority=N] [label=KEY:VALUE]              queue NAME [weight=X] [slots_max=N] [waiting_max=N]
//        [run_time_default=D]
//   live DURATION                 time passes; workers report, and running trainers step, every 30 s
//   delete JOB                    restore-server: from a backup made just now
//   restart-server                show JOB                 workers                desired WORKER          queues
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "server/core/core.h"
#include "tests/server/fakes/fake_worker.h"
#include "tests/server/fakes/memory_store.h"
#include "tests/test_paths.h"
#include "tests/transcript.h"

namespace longspan::core {
namespace {

using ::longspan::testing::FakeWorker;
using ::longspan::testing::MemoryStore;

std::string Text(const absl::Status& status) {
  return absl::StatusCodeToString(status.code()) + ": " + std::string(status.message().data(), status.message().size());
}

class Transcript {
 public:
  Transcript() { StartServer(false); }

  std::string Run(const std::string& line) {
    out_.clear();
    std::istringstream words(line);
    words >> command_;
    arguments_.clear();
    options_.clear();
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      if (equals == std::string::npos) {
        arguments_.push_back(word);
      } else {
        std::string value = word.substr(equals + 1);
        for (char& c : value) c = c == '_' ? ' ' : c;  // a message in one word
        options_[word.substr(0, equals)] = value;
      }
    }
    Dispatch();
    return out_;
  }

 private:
  void Dispatch() {
    if (command_ == "submit") return Submit();
    if (command_ == "worker") return AddWorker();
    if (command_ == "restart-worker") return Worker(Argument(0)).Restart();
    if (command_ == "sync") return Sync();
    if (command_ == "report") return (void)Step(Worker(Argument(0)).MakeReport(now_));
    if (command_ == "hold") return (void)(late_[Argument(0)] = Worker(Argument(0)).MakeReport(now_));
    if (command_ == "deliver") return (void)Step(late_.at(Argument(0)));
    if (command_ == "drop") return Drop();
    if (command_ == "rank") return ChangeRank();
    if (command_ == "cancel") return (void)Step(CancelRequested{JobId(Argument(0))});
    if (command_ == "pause") return (void)Step(PauseRequested{JobId(Argument(0))});
    if (command_ == "resume") return (void)Step(ResumeRequested{JobId(Argument(0))});
    if (command_ == "drain") return (void)Step(DrainRequested{WorkerId(Argument(0)), arguments_.size() > 1});
    if (command_ == "update") return Update();
    if (command_ == "queue") return ConfigureQueue();
    if (command_ == "queues") return ShowQueues();
    if (command_ == "undrain") return (void)Step(UndrainRequested{WorkerId(Argument(0))});
    if (command_ == "advance") return Advance();
    if (command_ == "live") return Live();
    if (command_ == "restart-server") return StartServer(false);
    if (command_ == "restore-server") return StartServer(true);
    if (command_ == "delete") return (void)Step(DeleteRequested{JobId(Argument(0))});
    if (command_ == "show") return Show();
    if (command_ == "workers") return ShowWorkers();
    if (command_ == "desired") return ShowDesired();
    Print("unknown command " + command_);
  }

  void StartServer(bool from_backup) {
    CoreOptions options;
    options.jobs_folder = "/storage/jobs";
    core_ = std::make_unique<Core>(options);
    Step(Restarted{store_.Load(), from_backup});
  }

  Effects Step(const Event& event) {
    Effects effects = core_->Step(event, now_);
    store_.Commit(effects.transaction);
    for (const auto& [job_id, row] : effects.transaction.events) {
      std::string message = row.message;
      for (size_t at = 0; (at = message.find('\n', at)) != std::string::npos; at += 3) message.replace(at, 1, " | ");
      Print(fmt::format("{} {} {}: {}", job_id, Name(row.state), row.reason, message));
    }
    if (const auto* reply = std::get_if<CommandReply>(&effects.reply); reply && !reply->status.ok())
      Print(Text(reply->status));
    if (const auto* reply = std::get_if<ReportReply>(&effects.reply); reply && !reply->status.ok())
      Print(Text(reply->status));
    if (effects.tick_soon) Step(Tick{});
    return effects;
  }

  void Submit() {
    Job job;
    job.name = Argument(0);
    job.id = JobId("job-" + job.name);
    job.request_id = Option("request", job.name);
    if (job.request_id != job.name) job.id = JobId(job.id.value() + "-again");
    job.content_hash = Option("content", "same");
    job.queue = Option("queue", "default");
    job.gang_sizes = {Number("slots", 1)};
    if (options_.contains("sizes")) {
      job.gang_sizes.clear();
      std::istringstream sizes(options_["sizes"]);
      for (std::string size; std::getline(sizes, size, ',');) job.gang_sizes.push_back(std::stoll(size));
    }
    if (options_.contains("gpu")) job.requirements.labels["gpu"] = options_["gpu"];
    job.priority = Number("priority", 50);
    job.max_attempts = Number("max_attempts", 20);
    if (options_.contains("max_run_time")) job.max_run_time = Duration("max_run_time");
    const SubmitReply reply = std::get<SubmitReply>(Step(JobSubmitted{job}).reply);
    if (!reply.status.ok()) Print(Text(reply.status));
    if (reply.already_submitted) Print(fmt::format("already submitted as {}", reply.job_id));
  }

  void Update() {
    UpdateRequested update{JobId(Argument(0)), std::nullopt, {}};
    if (options_.contains("priority")) update.priority = Number("priority", 0);
    if (options_.contains("label")) {
      const std::string& label = options_["label"];
      update.labels[label.substr(0, label.find(':'))] = label.substr(label.find(':') + 1);
    }
    Step(update);
  }

  void ConfigureQueue() {
    QueueConfigured queue{Argument(0), {}, {}, {}, {}};
    if (options_.contains("weight")) queue.weight = std::stod(options_["weight"]);
    if (options_.contains("slots_max")) queue.slots_max = Number("slots_max", 0);
    if (options_.contains("waiting_max")) queue.waiting_max = Number("waiting_max", 0);
    if (options_.contains("run_time_default")) queue.run_time_default = Duration("run_time_default");
    Step(queue);
  }

  void ShowQueues() {
    for (const QueueView& view : core_->ListQueues(now_)) {
      const auto limit = [](int64_t max) { return max == 0 ? "any" : std::to_string(max); };
      Print(fmt::format(
          "{} weight {:g}: {} waiting of {}, {} slots held of {}, used {:.0f} slot-seconds ({:.0f}% of {:.0f}%), "
          "{} a job",
          view.queue.name, view.queue.weight, view.waiting, limit(view.queue.waiting_max), view.slots_held,
          limit(view.queue.slots_max), view.queue.used_slot_seconds, 100 * view.used_share, 100 * view.expected_share,
          absl::FormatDuration(view.queue.run_time_default)));
    }
  }

  void AddWorker() {
    const WorkerId id(Argument(0));
    workers_.emplace(id, FakeWorker(id, Number("slots", 1)));
    SyncOne(Worker(id.value()));
  }

  void Sync() {
    if (Argument(0) == "*") {
      for (int round = 0; round < 2; ++round) {
        for (auto& [id, worker] : workers_) SyncOne(worker);
      }
      return;
    }
    for (const std::string& name : arguments_) SyncOne(Worker(name));
  }

  void SyncOne(FakeWorker& worker) {
    const Effects effects = Step(worker.MakeReport(now_));
    const ReportReply& reply = std::get<ReportReply>(effects.reply);
    if (!reply.status.ok()) return;
    if (!reply.greeting.empty()) {
      worker.Apply(reply, {}, now_);
      return SyncOne(worker);
    }
    for (const std::string& line : worker.Apply(reply, core_->Desired(worker.id()), now_)) {
      Print(fmt::format("{}: {}", worker.id(), line));
    }
  }

  static FakeWorker::Key ParseKey(const std::string& name) {
    const size_t first = name.find('/');
    const size_t second = name.find('/', first + 1);
    return {JobId(name.substr(0, first)), std::stoll(name.substr(first + 1)), std::stoll(name.substr(second + 1))};
  }

  void Drop() {
    for (auto& [id, worker] : workers_) worker.ranks().erase(ParseKey(Argument(0)));
  }

  void ChangeRank() {
    const std::string& name = Argument(0);
    const FakeWorker::Key key = ParseKey(name);
    FakeWorker* worker = nullptr;
    for (auto& [id, candidate] : workers_) {
      if (candidate.ranks().contains(key)) worker = &candidate;
    }
    if (worker == nullptr) return Print("no worker has " + name);
    RankReport& report = worker->ranks().at(key).report;
    if (arguments_.size() > 1 && arguments_[1] == "running") report.state = RankState::kRunning;
    if (options_.contains("store")) report.store_address = options_["store"];
    if (options_.contains("expect")) report.expect_no_progress = Duration("expect");
    if (options_.contains("reached")) report.reached_step = Number("reached", 0);
    if (options_.contains("step")) worker->AddSample(key, PhaseOption(), Number("step", 0), now_);
    if (options_.contains("warning")) report.warnings.push_back(options_["warning"]);
    if (options_.contains("checkpoint")) {
      const std::string& text = options_["checkpoint"];
      const size_t at = text.find('@');
      worker->AddCheckpoint(key, text.substr(0, at), std::stoll(text.substr(at + 1)));
    }
    if (options_.contains("exit") || options_.contains("signal")) {
      RankExit exit;
      exit.exit_code = static_cast<int>(Number("exit", -1));
      exit.signal = static_cast<int>(Number("signal", 0));
      exit.message = Option("message", "");
      exit.log_tail = Option("log", "");
      const std::string failure_class = Option("class", "");
      if (failure_class == "infrastructure") exit.failure_class = FailureClass::kInfrastructure;
      if (failure_class == "user") exit.failure_class = FailureClass::kUser;
      if (failure_class == "resource") exit.failure_class = FailureClass::kResource;
      worker->Exit(key, exit, options_.contains("age") ? now_ - Duration("age") : now_);
    }
  }

  void Advance() {
    absl::Duration by;
    if (!absl::ParseDuration(Argument(0), &by)) return Print("no duration: " + Argument(0));
    const absl::Time end = now_ + by;
    // Ticks come when they are due, so each deadline is met at its own time.
    while (core_->NextDeadline() < end) {
      now_ = std::max(now_, core_->NextDeadline());
      Step(Tick{});
    }
    now_ = end;
    Step(Tick{});
  }

  void Live() {
    absl::Duration left;
    if (!absl::ParseDuration(Argument(0), &left)) return Print("no duration: " + Argument(0));
    const std::string whole = Argument(0);
    for (; left > absl::ZeroDuration(); left -= absl::Seconds(30)) {
      arguments_[0] = absl::FormatDuration(std::min(left, absl::Seconds(30)));
      Advance();
      for (auto& [id, worker] : workers_) {
        for (auto& [key, rank] : worker.ranks()) {
          const bool steps = rank.desired.rank == 0 && rank.desired.command == "run" && !rank.report.exit &&
                             rank.report.state == RankState::kRunning;
          if (steps) worker.AddSample(key, Phase::kTrain, ++live_steps_[key], now_);
        }
        SyncOne(worker);
      }
    }
    arguments_[0] = whole;
  }

  void Show() {
    const absl::StatusOr<JobView> view = core_->ViewJob(JobId(Argument(0)));
    if (!view.ok()) return Print(Text(view.status()));
    const Job& job = view->job;
    Print(fmt::format("{} {} {} phase={} attempt={} position={}", job.id, Name(job.state), job.reason, Name(job.phase),
                      job.attempt, view->queue_position));
    Print("  " + job.message);
    if (view->progress) Print(fmt::format("  progress {} step {}", Name(view->progress->phase), view->progress->step));
    if (view->latest_checkpoint) Print("  checkpoint " + view->latest_checkpoint->name);
    for (const scheduler::Placement& slot : job.reserved) {
      Print(fmt::format("  slot {}:{} is kept for {}", slot.worker_id, slot.slot,
                        absl::FormatDuration(job.reserved_until - now_)));
    }
  }

  void ShowWorkers() {
    for (const WorkerView& view : core_->ListWorkers()) {
      std::string slots;
      for (const JobId& job : view.slot_jobs) slots += " " + (job.empty() ? "-" : job.value());
      Print(fmt::format("{} {}{}:{}", view.worker.id, view.worker.up ? "up" : "down",
                        view.worker.draining ? " draining" : "", slots));
    }
  }

  void ShowDesired() {
    for (const DesiredRank& rank : core_->Desired(WorkerId(Argument(0))).ranks) {
      std::string recorded;
      for (const std::string& name : rank.recorded_checkpoints) recorded += " " + name;
      Print(fmt::format("{}/{} rank {} of {} {} {} resume={} recorded={}", rank.job_id, rank.attempt, rank.rank,
                        rank.world_size, rank.command, rank.action == DesiredRank::Action::kRun ? "run" : "stop",
                        rank.resume_from, recorded));
    }
  }

  Phase PhaseOption() {
    const std::string phase = Option("phase", "train");
    for (const Phase candidate : {Phase::kPrepare, Phase::kTrain, Phase::kEvaluate, Phase::kExport}) {
      std::string name = Name(candidate);
      for (char& c : name) c = static_cast<char>(std::tolower(c));
      if (name == phase) return candidate;
    }
    return Phase::kUnspecified;
  }
  const std::string& Argument(size_t i) { return arguments_.at(i); }
  std::string Option(const std::string& name, const std::string& otherwise) {
    return options_.contains(name) ? options_[name] : otherwise;
  }
  int64_t Number(const std::string& name, int64_t otherwise) {
    return options_.contains(name) ? std::stoll(options_[name]) : otherwise;
  }
  absl::Duration Duration(const std::string& name) {
    absl::Duration duration;
    EXPECT_TRUE(absl::ParseDuration(options_[name], &duration)) << options_[name];
    return duration;
  }
  FakeWorker& Worker(const std::string& name) { return workers_.at(WorkerId(name)); }
  void Print(const std::string& line) { out_ += line + "\n"; }

  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  MemoryStore store_;
  std::unique_ptr<Core> core_;
  std::map<WorkerId, FakeWorker> workers_;
  std::map<FakeWorker::Key, int64_t> live_steps_;
  std::map<std::string, WorkerReport> late_;
  std::string command_;
  std::vector<std::string> arguments_;
  std::map<std::string, std::string> options_;
  std::string out_;
};

class TranscriptTest : public ::testing::TestWithParam<std::string> {};

TEST_P(TranscriptTest, ComesOutAsWritten) {
  Transcript transcript;
  testing::ExpectTranscript(testing::SourceDir() / "tests/server/core/transcripts" / (GetParam() + ".txt"),
                            [&](const std::string& command) { return transcript.Run(command); });
}

INSTANTIATE_TEST_SUITE_P(Core, TranscriptTest,
                         ::testing::Values("a_job_from_submit_to_success", "a_rank_fails", "cancel_and_pause",
                                           "lease_and_fencing", "server_restart", "waiting_and_placement", "deadlines",
                                           "an_evaluation_has_no_steps", "warnings", "preemption", "elastic_jobs",
                                           "growth_waits_for_an_ending_gang", "queues", "drain_and_move",
                                           "backup_and_retention", "a_rank_hangs", "a_late_report_of_a_dead_daemon",
                                           "a_late_report_across_a_restart"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace longspan::core
