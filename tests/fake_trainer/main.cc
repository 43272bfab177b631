// longspan-fake-trainer: takes the real trainer's command line and speaks its lines, but computes nothing. Labels of
// the job say what it does; README.md lists them.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "proto/jobfile/job_file.h"
#include "proto/trainer_lines/trainer_lines.h"
#include "tests/fake_trainer/checkpoints.h"
#include "tests/fake_trainer/gang.h"
#include "tests/fake_trainer/history.h"
#include "worker/storage/storage.h"

namespace longspan::fake_trainer {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kStop = 1, kCheckpointNow = 2, kStopWithoutCheckpoint = 4;

struct CommandLine {
  std::string command, spec, work, job = "job", resume_from, manifest_sha256, advertise_address = "127.0.0.1", store,
                                   checkpoint, device = "cpu";
  int64_t attempt = 1, rank = 0, world_size = 1, threads = 1, lines_out_fd = -1, lines_in_fd = -1, slot_memory = 0;
};

// Ends the process with an exit code, after a `failed` line.
struct Failure {
  int exit_code;
  std::string message;
};

CommandLine ParseCommandLine(int argc, char** argv) {
  if (argc < 3) throw Failure{lines::kExitBadSpec, "usage: longspan-fake-trainer COMMAND SPEC.json --work DIR ..."};
  CommandLine line;
  line.command = argv[1];
  line.spec = argv[2];
  const std::map<std::string, std::string*> texts = {{"--work", &line.work},
                                                     {"--job", &line.job},
                                                     {"--resume-from", &line.resume_from},
                                                     {"--manifest-sha256", &line.manifest_sha256},
                                                     {"--checkpoint", &line.checkpoint},
                                                     {"--store", &line.store},
                                                     {"--advertise-address", &line.advertise_address},
                                                     {"--device", &line.device}};
  const std::map<std::string, int64_t*> numbers = {
      {"--attempt", &line.attempt},           {"--rank", &line.rank},
      {"--world-size", &line.world_size},     {"--threads", &line.threads},
      {"--lines-out-fd", &line.lines_out_fd}, {"--lines-in-fd", &line.lines_in_fd},
      {"--slot-memory", &line.slot_memory}};
  for (int i = 3; i < argc; i += 2) {
    if (i + 1 == argc) throw Failure{lines::kExitBadSpec, fmt::format("{} has no value", argv[i])};
    if (texts.contains(argv[i])) {
      *texts.at(argv[i]) = argv[i + 1];
    } else if (numbers.contains(argv[i])) {
      *numbers.at(argv[i]) = std::stoll(argv[i + 1]);
    } else {
      throw Failure{lines::kExitBadSpec, fmt::format("unknown flag {}", argv[i])};
    }
  }
  if (line.resume_from == "none") line.resume_from.clear();  // the service says so: start afresh, look for nothing
  return line;
}

jobfile::JobSpec ReadSpec(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  jobfile::Parsed parsed = jobfile::ParseText(text.str());
  if (!parsed.spec)
    throw Failure{lines::kExitBadSpec, parsed.mistakes.empty() ? path : jobfile::ToString(parsed.mistakes.front())};
  return *parsed.spec;
}

// Thrown out of a phase without steps that was asked to stop; what it has published stays.
struct StopRequested {};

std::string FailureClassOf(int exit_code) {
  switch (exit_code) {
    case lines::kExitBadSpec:
    case lines::kExitUserData:
      return "user";
    case lines::kExitResource:
      return "resource";
    case lines::kExitInternal:
      return "internal";
    default:
      return "infrastructure";
  }
}

// Room for a line in a pipe, whose writers are promised PIPE_BUF bytes then.
bool IsWritable(int descriptor, int timeout_ms) {
  pollfd out{descriptor, POLLOUT, 0};
  return ::poll(&out, 1, timeout_ms) > 0;
}

class Trainer {
 public:
  Trainer(const CommandLine& line, const jobfile::JobSpec& spec)
      : line_(line), spec_(spec), gang_(line.attempt, [this] { ReadLines(); }) {}

  int Run() {
    if (line_.lines_in_fd >= 0) ::fcntl(static_cast<int>(line_.lines_in_fd), F_SETFL, O_NONBLOCK);
    Pause(Knob("fake.start_ms"));
    Write(lines::Hello{.pid = ::getpid(), .rank = line_.rank, .version = "fake"});
    if (Knob("fake.ignore_stop") != 0) std::signal(SIGTERM, SIG_IGN);
    Log(fmt::format("{} of {}, attempt {}, rank {} of {}", line_.command, line_.job, line_.attempt, line_.rank,
                    line_.world_size));
    try {
      return RunPhases();
    } catch (const StopRequested&) {
      return Finish(true);
    }
  }

  void Write(const lines::FromTrainer& message) {
    if (line_.lines_out_fd < 0) return;
    const std::string text = lines::Encode(message);
    // As the real trainer: a daemon that does not read holds nobody up, and least of all beyond the lease.
    const bool may_drop = std::holds_alternative<lines::Progress>(message) ||
                          std::holds_alternative<lines::Reached>(message) ||
                          std::holds_alternative<lines::Failed>(message);
    if (may_drop && !IsWritable(static_cast<int>(line_.lines_out_fd), 0)) return;
    while (!IsWritable(static_cast<int>(line_.lines_out_fd), 50)) ReadLines();
    if (::write(static_cast<int>(line_.lines_out_fd), text.data(), text.size()) < 0)
      throw Failure{lines::kExitInfrastructure, "the daemon is gone"};
  }

 private:
  int RunPhases() {
    if (line_.command == "prepare") return Prepare();
    if (line_.command == "run" || line_.command == "train") {
      MeetOthers();
      if (!Train()) return Finish(true);
    }
    if (line_.rank == 0 && line_.command != "train") Evaluate();
    if (line_.rank == 0 && line_.command != "train" && line_.command != "evaluate") Export();
    return Finish(false);
  }

  // A number among the labels; 0 when it is not there.
  int64_t Knob(const std::string& name, int64_t otherwise = 0) const {
    const auto found = spec_.labels.find(name);
    if (found == spec_.labels.end()) return otherwise;
    if (found->second == "true") return 1;
    return std::strtoll(found->second.c_str(), nullptr, 10);
  }

  void Log(const std::string& text) {
    const std::string whole = fmt::format("rank {}: {}\n", line_.rank, text);
    while (!IsWritable(STDOUT_FILENO, 50)) ReadLines();
    (void)!::write(STDOUT_FILENO, whole.data(), whole.size());
  }

  // ---- what the daemon says ----

  void ReadLines() {
    if (line_.lines_in_fd < 0) return;
    char bytes[4096];
    for (;;) {
      const ssize_t got = ::read(static_cast<int>(line_.lines_in_fd), bytes, sizeof bytes);
      if (got == 0) throw Failure{lines::kExitInfrastructure, "the daemon is gone"};
      if (got < 0) break;
      incoming_.Append(std::string_view(bytes, static_cast<size_t>(got)));
    }
    while (auto text = incoming_.Next()) {
      bool malformed = false;
      if (auto message = lines::DecodeToTrainer(*text, &malformed))
        std::visit([this](const auto& m) { Take(m); }, *message);
    }
    if (lease_end_ && Clock::now() > *lease_end_) throw Failure{lines::kExitInfrastructure, "the lease ran out"};
  }
  void Take(const lines::Rendezvous& message) { rendezvous_ = message.address; }
  void Take(const lines::Stop& message) {
    if (Knob("fake.ignore_stop") == 0) flags_ |= message.checkpoint ? kStop : kStop | kStopWithoutCheckpoint;
  }
  void Take(const lines::CheckpointNow&) { flags_ |= kCheckpointNow; }
  void Take(const lines::Lease& message) {
    lease_end_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                    std::chrono::duration<double>(lines::RemainingSeconds(message)));
  }
  void Take(const lines::CheckpointRecorded& message) {
    if (line_.rank == 0) DeleteOlder(line_.work, message.name, spec_.checkpoint.keep_last);
  }

  // Waits while listening to the daemon.
  void WaitUntil(Clock::time_point end) {
    for (;;) {
      ReadLines();
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
      if (left <= 0) return;
      pollfd waiting{static_cast<int>(line_.lines_in_fd), POLLIN, 0};
      ::poll(&waiting, line_.lines_in_fd >= 0 ? 1 : 0, static_cast<int>(std::min<int64_t>(left, 50)));
    }
  }
  void Pause(int64_t milliseconds) { WaitUntil(Clock::now() + std::chrono::milliseconds(milliseconds)); }
  // The same in a phase that nothing needs to be saved of.
  void PauseOrStop(int64_t milliseconds) {
    const auto end = Clock::now() + std::chrono::milliseconds(milliseconds);
    do {
      Pause(std::min<int64_t>(
          20, std::max<int64_t>(0, std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count())));
      if ((flags_ & kStop) != 0) throw StopRequested{};
    } while (Clock::now() < end);
  }

  // ---- phases ----

  int Prepare() {
    Write(lines::Phase{"prepare"});
    PauseOrStop(Knob("fake.prepare_ms"));
    fs::create_directories(line_.work);
    storage::WriteFileAtomically(fs::path(line_.work) / "dataset.json", "{\"tokens\": 0}\n");
    Write(lines::Progress{"prepare", 1, 1, {}});
    Write(lines::Artifact{"dataset", "dataset.json", ""});
    return Finish(false);
  }

  void MeetOthers() {
    if (line_.rank == 0) {
      Write(lines::Rendezvous{gang_.Listen(line_.advertise_address)});
      gang_.AcceptAll(line_.world_size);
      return;
    }
    if (!line_.store.empty()) rendezvous_ = line_.store;
    while (rendezvous_.empty()) Pause(50);
    gang_.Join(rendezvous_);
  }

  // Rank 0 looks, the others take its word.
  std::string ChooseCheckpoint() {
    if (line_.rank != 0) return gang_.Share("");
    fs::create_directories(line_.work);
    DeletePartial(line_.work);
    for (const char* folder : {".", "adapter", "merged"}) storage::RemoveTemporaries(fs::path(line_.work) / folder);
    std::string name = line_.resume_from;
    if (!name.empty()) {
      try {
        LoadCheckpoint(line_.work, name, line_.manifest_sha256);
      } catch (const std::exception& error) {
        name = NewestWholeBut(name, error.what());
      }
    }
    return gang_.Share(name);
  }

  // The newest whole checkpoint beside a damaged one; there must be one.
  std::string NewestWholeBut(const std::string& damaged, const std::string& why) {
    for (const std::string& name : ListCheckpoints(line_.work)) {
      if (name == damaged) continue;
      try {
        const int64_t step = LoadCheckpoint(line_.work, name, "").step();
        Write(lines::Warning{fmt::format("{}; goes on from {} at step {}", why, name, step)});
        return name;
      } catch (const std::exception&) {  // damaged, too
      }
    }
    throw Failure{lines::kExitInfrastructure, why + ", and no other checkpoint is whole"};
  }

  // False when it stopped on request.
  bool Train() {
    const int64_t steps = Knob("fake.steps", spec_.training.steps);
    const std::string name = ChooseCheckpoint();
    if (!name.empty()) history_ = LoadCheckpoint(line_.work, name, "");
    saved_step_ = history_.step();
    Log(name.empty() ? "starts" : fmt::format("resumes from {} at step {}", name, history_.step()));
    if (line_.rank == 0) progress_.emplace(line_.work, history_.step());
    Write(lines::Phase{"train"});
    for (int64_t i = line_.rank == 0 ? Knob("fake.garbage_lines") : 0; i > 0; --i) WriteGarbage(i);
    while (history_.step() < steps) {
      const int64_t step = history_.step();
      if (step > saved_step_) Write(lines::Reached{step});
      // Taken first: what the daemon says while the others are heard counts for the next step.
      const uint64_t agreed = gang_.Agree({step, history_.digest(), std::exchange(flags_, 0)});
      const bool stop = (agreed & kStop) != 0;
      const bool due = step > 0 && step != saved_step_ && spec_.checkpoint.every_steps > 0 &&
                       step % spec_.checkpoint.every_steps == 0;
      if (due || (agreed & kCheckpointNow) != 0 || (stop && (agreed & kStopWithoutCheckpoint) == 0)) Save();
      if (stop) return false;
      Step(steps);
    }
    Write(lines::Reached{steps});
    // The last steps of all ranks are done before the checkpoint says so.
    flags_ |= gang_.Agree({history_.step(), history_.digest(), std::exchange(flags_, 0)}) & kStop;
    if (saved_step_ != steps) Save();
    return true;
  }

  void Step(int64_t steps) {
    const int64_t step = history_.step() + 1;
    const int64_t attempt = Knob("fake.fail_attempt");
    const bool chosen = line_.rank == Knob("fake.fail_rank") && (attempt == 0 || attempt == line_.attempt);
    if (chosen && step == Knob("fake.hang_at_step")) Hang();
    if (chosen && step == Knob("fake.fail_at_step")) Fail(step);
    const auto begin = Clock::now();
    WaitUntil(begin + std::chrono::milliseconds(Knob("fake.step_ms", 5)));
    const double seconds = std::max(1e-6, std::chrono::duration<double>(Clock::now() - begin).count());
    history_.DoNextStep();
    AppendToStepsLog(line_.work, line_.attempt, line_.rank, step);
    const double tokens = static_cast<double>(spec_.training.global_batch * spec_.context_length);
    Log(fmt::format("step {} of {}, loss {:.4f}", step, steps, history_.Loss()));
    if (line_.rank != 0) return;
    progress_->Add(history_, line_.attempt);
    Write(lines::Progress{"train",
                          step,
                          steps,
                          {{"loss", history_.Loss()},
                           {"grad_norm", 1.0 / static_cast<double>(step)},
                           {"learning_rate", spec_.training.learning_rate},
                           {"tokens_total", tokens * static_cast<double>(step)},
                           {"tokens_per_second", tokens / seconds},
                           {"nonfinite_steps", 0.0},
                           {"seconds_forward", seconds / 3},
                           {"seconds_backward", seconds * 2 / 3}}});
  }

  // Hears the lease, but moves no step.
  void Hang() {
    Log("hangs");
    for (;;) Pause(1000);
  }

  void Fail(int64_t step) {
    const auto exit_code = static_cast<int>(Knob("fake.exit_code", lines::kExitInfrastructure));
    Log(fmt::format("fails at step {} with exit code {}", step, exit_code));
    if (exit_code == 128 + SIGKILL) ::raise(SIGKILL);
    throw Failure{exit_code, fmt::format("told to fail at step {}", step)};
  }

  void WriteGarbage(int64_t i) {
    const std::string text = i % 3 == 0   ? std::string(lines::kLineBytesMax + 10, 'x') + "\n"
                             : i % 3 == 1 ? "{\"type\":\n"
                                          : "{\"type\":\"warning\"}\n";
    for (size_t at = 0; at < text.size();) {
      const ssize_t written = ::write(static_cast<int>(line_.lines_out_fd), text.data() + at, text.size() - at);
      if (written < 0) return;
      at += static_cast<size_t>(written);
    }
  }

  void Save() {
    const int64_t step = history_.step();
    saved_step_ = step;
    if (line_.rank != 0) return;
    const auto begin = Clock::now();
    Write(lines::Expect{"checkpoint", static_cast<double>(Knob("fake.expect_seconds", 60))});
    Pause(Knob("fake.slow_checkpoint_ms"));
    const SavedCheckpoint saved = SaveCheckpoint(line_.work, line_.job, line_.attempt, history_);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    Write(lines::Checkpoint{saved.name, step, saved.manifest_sha256, saved.size_bytes, seconds});
  }

  void Evaluate() {
    Write(lines::Phase{"evaluate"});
    const int64_t steps = Knob("fake.steps", spec_.training.steps);
    for (const int64_t length : {spec_.context_length / 2, spec_.context_length}) {
      double loss = length == spec_.context_length ? 4.0 : 2.0;
      for (const char* model : {"base", "rescaled", "extended"}) {
        PauseOrStop(Knob("fake.evaluate_ms"));
        Write(lines::Evaluation{model, length, "windows", std::exp(loss), loss, 4096,
                                std::string_view(model) == "extended" ? steps : 0});
        loss = 0.5 * (loss + 1.5);
      }
    }
  }

  void Export() {
    Write(lines::Phase{"export"});
    for (const char* kind : {"adapter", "merged"}) {
      if (kind == std::string_view("adapter") ? !spec_.output.adapter : !spec_.output.merged) continue;
      PauseOrStop(Knob("fake.export_ms"));
      const fs::path folder = fs::path(line_.work) / kind;
      fs::create_directories(folder);
      storage::WriteFileAtomically(folder / "config.json", "{}\n");
      Write(lines::Artifact{kind, kind, ""});
    }
  }

  int Finish(bool stopped) {
    Write(lines::Done{stopped});
    Log(stopped ? "stopped" : "done");
    return stopped ? lines::kExitStopped : lines::kExitDone;
  }

  const CommandLine& line_;
  const jobfile::JobSpec& spec_;
  lines::LineBuffer incoming_;
  Gang gang_;
  uint64_t flags_ = 0;
  History history_;
  std::optional<ProgressFile> progress_;  // of rank 0
  int64_t saved_step_ = 0;
  std::string rendezvous_;
  std::optional<Clock::time_point> lease_end_;
};

int Main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  CommandLine line;
  try {
    line = ParseCommandLine(argc, argv);
    const jobfile::JobSpec spec = ReadSpec(line.spec);
    Trainer trainer(line, spec);
    const auto report = [&trainer](int exit_code, const std::string& message) {
      if (IsWritable(STDERR_FILENO, 0)) std::fprintf(stderr, "%s\n", message.c_str());
      try {
        trainer.Write(lines::Failed{FailureClassOf(exit_code), message});
      } catch (const Failure&) {  // nobody is there to hear it
      }
      return exit_code;
    };
    try {
      return trainer.Run();
    } catch (const Failure& failure) {
      return report(failure.exit_code, failure.message);
    } catch (const RanksDisagree& error) {
      return report(lines::kExitInternal, error.what());
    } catch (const PeerLost& error) {
      return report(lines::kExitInfrastructure, error.what());
    } catch (const storage::StorageError& error) {
      return report(
          error.kind() == storage::StorageErrorKind::kNoSpace ? lines::kExitResource : lines::kExitInfrastructure,
          error.what());
    } catch (const std::exception& error) {
      return report(lines::kExitInfrastructure, error.what());
    }
  } catch (const Failure& failure) {
    std::fprintf(stderr, "%s\n", failure.message.c_str());
    return failure.exit_code;
  }
}

}  // namespace
}  // namespace longspan::fake_trainer

int main(int argc, char** argv) { return longspan::fake_trainer::Main(argc, argv); }
