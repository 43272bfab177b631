// The supervisor, by transcripts and by a random walk.
#include "worker/daemon/supervisor.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <sstream>

#include "tests/test_paths.h"
#include "tests/transcript.h"

namespace longspan::worker {
namespace {

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1000);

RankKey ParseKey(const std::string& text) {
  const size_t first = text.find('/');
  const size_t second = text.find('/', first + 1);
  return {text.substr(0, first), std::stoll(text.substr(first + 1)), std::stoll(text.substr(second + 1))};
}

std::string Short(const RankKey& key) { return fmt::format("{}/{}/{}", key.job_id, key.attempt, key.rank); }

// Interprets the commands that are listed at the top of each transcript.
class Script {
 public:
  Script() : supervisor_(SupervisorOptions{}) {}

  std::string Execute(const std::string& line) {
    std::istringstream in(line);
    in >> command_;
    positional_.clear();
    arguments_.clear();
    if (command_ == "line") {
      in >> target_ >> std::ws;
      std::getline(in, rest_);
    } else {
      for (std::string word; in >> word;) {
        const size_t equals = word.find('=');
        if (equals == std::string::npos) {
          positional_.push_back(word);
        } else {
          arguments_[word.substr(0, equals)] = word.substr(equals + 1);
        }
      }
      target_ = positional_.empty() ? "" : positional_[0];
    }
    out_.clear();
    Dispatch();
    return out_;
  }

 private:
  void Dispatch() {
    if (command_ == "want") return Want();
    if (command_ == "unwant") return (void)wanted_.erase(ParseKey(target_));
    if (command_ == "ack") return Acknowledge();
    if (command_ == "answer") return Answer();
    if (command_ == "line") return Line();
    if (command_ == "exit") return Exit();
    if (command_ == "spawn_failed") return Print(supervisor_.OnSpawnFailed(ParseKey(target_), "no such file", now_));
    if (command_ == "advance") return Advance(DurationOf(target_));
    if (command_ == "jump") return Jump(DurationOf(target_));
    if (command_ == "leave") return Print(supervisor_.BeginLeaving(DurationOf(arguments_.at("grace")), now_));
    if (command_ == "set_clock") return (void)(wall_offset_ = DurationOf(target_));
    if (command_ == "times") return PrintTimes();
    if (command_ == "report") return Report();
    if (command_ == "due") return PrintDue();
    FAIL() << "unknown command " << command_;
  }

  static absl::Duration DurationOf(const std::string& text) {
    absl::Duration duration;
    EXPECT_TRUE(absl::ParseDuration(text, &duration)) << text;
    return duration;
  }
  int64_t Number(const std::string& name, int64_t otherwise) const {
    const auto found = arguments_.find(name);
    return found == arguments_.end() ? otherwise : std::stoll(found->second);
  }
  std::string Text(const std::string& name) const {
    const auto found = arguments_.find(name);
    return found == arguments_.end() ? "" : found->second;
  }

  void Want() {
    const RankKey key = ParseKey(target_);
    v1::DesiredRank desired;
    desired.set_job_id(key.job_id);
    desired.set_attempt(key.attempt);
    desired.set_rank(key.rank);
    desired.set_world_size(Number("of", 1));
    desired.set_slot(Number("slot", key.rank));
    desired.set_command("run");
    desired.set_folder("/storage/jobs/" + key.job_id);
    desired.set_store_address(Text("store"));
    desired.set_action(Text("action") == "stop" ? v1::DesiredRank::ACTION_STOP : v1::DesiredRank::ACTION_RUN);
    if (arguments_.contains("grace")) {
      desired.mutable_stop_grace()->set_seconds(absl::ToInt64Seconds(DurationOf(Text("grace"))));
    }
    if (arguments_.contains("recorded")) desired.add_recorded_checkpoints(Text("recorded"));
    wanted_[key] = desired;
  }

  void Acknowledge() {
    const RankKey key = ParseKey(target_);
    v1::RankAcknowledgement* ack = answer_.add_acknowledged();
    ack->set_job_id(key.job_id);
    ack->set_attempt(key.attempt);
    ack->set_rank(key.rank);
    ack->set_sample_sequence(Number("samples", 0));
    ack->set_evaluations(Number("evaluations", 0));
    ack->set_artifacts(Number("artifacts", 0));
    ack->set_warnings(Number("warnings", 0));
    if (arguments_.contains("checkpoint")) ack->add_checkpoints(Text("checkpoint"));
    for (const std::string& word : positional_) {
      if (word == "exit") ack->set_exit(true);
      if (word == "fenced") ack->set_fenced(true);
    }
  }

  void Answer() {
    answer_.set_desired_unchanged(arguments_.contains("unchanged"));
    if (!answer_.desired_unchanged()) {
      for (const auto& [key, desired] : wanted_) *answer_.add_desired_ranks() = desired;
    }
    answer_.mutable_lease()->set_seconds(Number("lease", 60));
    answer_.set_desired_fingerprint(Text("fingerprint"));
    const absl::Duration took = arguments_.contains("took") ? DurationOf(Text("took")) : absl::ZeroDuration();
    Print(supervisor_.OnAnswer(answer_, now_ - took, now_));
    answer_.Clear();
  }

  void Line() {
    bool malformed = false;
    const auto line = lines::DecodeFromTrainer(rest_, &malformed);
    ASSERT_TRUE(line.has_value()) << rest_;
    Print(supervisor_.OnLine(ParseKey(target_), *line, now_, now_ + wall_offset_));
  }

  void Exit() {
    ProcessEnd end;
    end.signal = static_cast<int>(Number("signal", 0));
    end.exit_code = static_cast<int>(Number("code", end.signal != 0 ? -1 : 0));
    end.log_tail = "last line\n";
    Print(supervisor_.OnExit(ParseKey(target_), end, now_));
  }

  // Wakes the supervisor at each of its deadlines on the way, as the daemon does.
  void Advance(absl::Duration duration) {
    const absl::Time end = now_ + duration;
    while (supervisor_.Deadline() <= end) {
      now_ = std::max(now_, supervisor_.Deadline());
      Print(supervisor_.OnTick(now_));
    }
    now_ = end;
  }

  // The daemon was frozen: no ticks on the way.
  void Jump(absl::Duration duration) {
    now_ += duration;
    Print(supervisor_.OnTick(now_));
  }

  std::string Stamp() const { return absl::FormatDuration(now_ - kStart); }

  void Print(const Effects& effects) {
    for (const Effect& effect : effects) out_ += fmt::format("{} {}\n", Stamp(), Describe(effect));
  }

  static std::string Describe(const Effect& effect) {
    if (const auto* spawn = std::get_if<SpawnRank>(&effect)) return "spawn " + Short(spawn->key);
    if (const auto* signal = std::get_if<SignalRank>(&effect)) {
      return fmt::format("signal {} {}", signal->signal, Short(signal->key));
    }
    if (const auto* forget = std::get_if<ForgetRank>(&effect)) return "forget " + Short(forget->key);
    if (const auto* note = std::get_if<Note>(&effect)) return (note->warning ? "warning: " : "note: ") + note->text;
    const auto& send = std::get<SendLine>(effect);
    return fmt::format("send {} {}", Short(send.key), DescribeLine(send.line));
  }

  static std::string DescribeLine(const lines::ToTrainer& line) {
    if (const auto* lease = std::get_if<lines::Lease>(&line))
      return fmt::format("lease {:g}s", lease->remaining_seconds);
    if (const auto* stop = std::get_if<lines::Stop>(&line)) return fmt::format("stop checkpoint={}", stop->checkpoint);
    if (const auto* rendezvous = std::get_if<lines::Rendezvous>(&line)) return "rendezvous " + rendezvous->address;
    if (const auto* recorded = std::get_if<lines::CheckpointRecorded>(&line)) return "recorded " + recorded->name;
    return "checkpoint now";
  }

  // When the samples were taken, by the wall clock.
  void PrintTimes() {
    v1::SynchronizeRequest request;
    supervisor_.FillReport(now_, &request);
    for (const auto& rank : request.ranks()) {
      for (const auto& sample : rank.samples()) {
        const absl::Time time =
            absl::FromUnixSeconds(sample.time().seconds()) + absl::Nanoseconds(sample.time().nanos());
        out_ += fmt::format("step {} at {}\n", sample.step(), absl::FormatDuration(time - kStart));
      }
    }
  }
  void Report() {
    v1::SynchronizeRequest request;
    supervisor_.FillReport(now_, &request);
    out_ += fmt::format("{} report fingerprint='{}'{}\n", Stamp(), request.desired_fingerprint(),
                        request.leaving() ? " leaving" : "");
    for (const auto& rank : request.ranks()) out_ += "  " + DescribeReport(rank) + "\n";
  }

  static std::string DescribeReport(const v1::RankReport& rank) {
    std::string text = fmt::format("{} {}", Short(KeyOf(rank)), v1::RankReport::State_Name(rank.state()).substr(6));
    if (rank.phase() != v1::PHASE_UNSPECIFIED) text += " " + v1::Phase_Name(rank.phase()).substr(6);
    if (!rank.store_address().empty()) text += " store=" + rank.store_address();
    for (const auto& sample : rank.samples()) text += fmt::format(" sample{}:step{}", sample.sequence(), sample.step());
    for (const auto& checkpoint : rank.checkpoints()) text += " checkpoint=" + checkpoint.name();
    for (const auto& row : rank.evaluations())
      text += fmt::format(" {}@{}={:g}", row.model(), row.length(), row.perplexity());
    for (const auto& artifact : rank.artifacts()) text += fmt::format(" {}={}", artifact.kind(), artifact.path());
    for (const std::string& warning : rank.warnings()) text += fmt::format(" warning='{}'", warning);
    if (rank.has_expect_no_progress()) text += fmt::format(" expect={}s", rank.expect_no_progress().seconds());
    if (rank.reached_step() > 0) text += fmt::format(" reached={}", rank.reached_step());
    if (rank.has_exit()) {
      const v1::RankExit& exit = rank.exit();
      text += fmt::format(" code={} signal={}{} {} '{}' {}ms ago", exit.exit_code(), exit.signal(),
                          exit.stopped() ? " stopped" : "", v1::FailureClass_Name(exit.failure_class()).substr(14),
                          exit.message(), exit.age_ms());
    }
    return text;
  }

  void PrintDue() {
    const absl::Time due = std::min(supervisor_.ChangeDue(), supervisor_.ProgressDue());
    if (due == absl::InfiniteFuture()) {
      out_ += "nothing to report\n";
    } else {
      out_ += fmt::format("report due in {}\n", absl::FormatDuration(std::max(due - now_, absl::ZeroDuration())));
    }
  }

  Supervisor supervisor_;
  absl::Time now_ = kStart;
  absl::Duration wall_offset_;
  std::map<RankKey, v1::DesiredRank> wanted_;
  v1::SynchronizeResponse answer_;
  std::string command_;
  std::string target_;
  std::string rest_;
  std::vector<std::string> positional_;
  std::map<std::string, std::string> arguments_;
  std::string out_;
};

class SupervisorTranscript : public ::testing::TestWithParam<std::string> {};

TEST_P(SupervisorTranscript, GivesTheExpectedEffects) {
  Script script;
  longspan::testing::ExpectTranscript(longspan::testing::SourceDir() / "tests/worker/daemon/transcripts" / GetParam(),
                                      [&](const std::string& line) { return script.Execute(line); });
}

INSTANTIATE_TEST_SUITE_P(All, SupervisorTranscript,
                         ::testing::Values("life.txt", "lease.txt", "stop.txt", "attempts.txt", "reports.txt",
                                           "unchanged.txt", "clock.txt", "leave.txt"),
                         [](const auto& info) { return info.param.substr(0, info.param.find('.')); });

TEST(SupervisorTest, KeepsABoundedNumberOfSamplesAndTheNewestOfThem) {
  Supervisor supervisor(SupervisorOptions{});
  v1::SynchronizeResponse answer;
  v1::DesiredRank* desired = answer.add_desired_ranks();
  desired->set_job_id("job-1");
  desired->set_attempt(1);
  desired->set_action(v1::DesiredRank::ACTION_RUN);
  answer.mutable_lease()->set_seconds(60);
  supervisor.OnAnswer(answer, kStart, kStart);
  const RankKey key{"job-1", 1, 0};
  for (int64_t step = 1; step <= 10'000; ++step) {
    supervisor.OnLine(key, lines::Progress{"train", step, 10'000, {{"loss", 1.0 / static_cast<double>(step)}}}, kStart,
                      kStart);
  }
  v1::SynchronizeRequest request;
  supervisor.FillReport(kStart, &request);
  const auto& samples = request.ranks(0).samples();
  EXPECT_LE(samples.size(), 200);
  EXPECT_GE(samples.size(), 100);
  EXPECT_EQ(samples.Get(0).step(), 1);
  EXPECT_EQ(samples.Get(samples.size() - 1).step(), 10'000);
  for (int i = 1; i < samples.size(); ++i) EXPECT_GT(samples.Get(i).sequence(), samples.Get(i - 1).sequence());
}

// Whatever server and processes do: no slot has two processes, no attempt of a job starts while another one's process
// lives, no rank starts twice, nothing starts without a lease, and a process that outlives its lease by the kill grace
// was sent SIGKILL.
TEST(SupervisorTest, RandomHistoriesKeepTheRules) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    const auto below = [&](uint64_t bound) { return static_cast<int64_t>(random() % bound); };
    Supervisor supervisor(SupervisorOptions{});
    absl::Time now = kStart;
    absl::Time lease_until = absl::InfinitePast();
    std::map<RankKey, int64_t> alive;  // slot of each living process
    std::set<RankKey> killed;
    std::set<RankKey> started;
    const auto apply = [&](const Effects& effects) {
      for (const Effect& effect : effects) {
        if (const auto* spawn = std::get_if<SpawnRank>(&effect)) {
          ASSERT_TRUE(started.insert(spawn->key).second) << ToString(spawn->key) << " started twice";
          ASSERT_GT(lease_until, now) << "started without a lease";
          for (const auto& [key, slot] : alive) {
            ASSERT_FALSE(slot == spawn->desired.slot() && slot >= 0) << "slot " << slot << " has two processes";
            ASSERT_FALSE(key.job_id == spawn->key.job_id && key.attempt != spawn->key.attempt)
                << "two attempts at once";
          }
          alive[spawn->key] = spawn->desired.slot();
        } else if (const auto* signal = std::get_if<SignalRank>(&effect)) {
          if (signal->signal == SIGKILL) killed.insert(signal->key);
        }
      }
    };
    std::map<std::string, int64_t> attempts;
    for (int step = 0; step < 200; ++step) {
      now += absl::Milliseconds(below(8000));
      while (supervisor.Deadline() <= now) apply(supervisor.OnTick(std::max(kStart, supervisor.Deadline())));
      for (const auto& [key, slot] : alive) {
        ASSERT_TRUE(lease_until + absl::Seconds(10) > now || killed.contains(key))
            << ToString(key) << " outlived its lease";
      }
      switch (below(4)) {
        case 0: {
          v1::SynchronizeResponse answer;
          for (int64_t i = below(4); i > 0; --i) {
            const std::string job = fmt::format("job-{}", below(3));
            int64_t& attempt = attempts[job];
            attempt = std::max<int64_t>(1, attempt + below(4) / 3);
            v1::DesiredRank* desired = answer.add_desired_ranks();
            desired->set_job_id(job);
            desired->set_attempt(std::max<int64_t>(1, attempt - below(5) / 4));
            desired->set_rank(below(2));
            desired->set_slot(below(3) - 1);
            desired->set_action(below(5) == 0 ? v1::DesiredRank::ACTION_STOP : v1::DesiredRank::ACTION_RUN);
          }
          for (const RankKey& key : started) {
            if (below(3) != 0) continue;
            v1::RankAcknowledgement* ack = answer.add_acknowledged();
            ack->set_job_id(key.job_id);
            ack->set_attempt(key.attempt);
            ack->set_rank(key.rank);
            ack->set_exit(below(2) == 0);
            ack->set_fenced(below(10) == 0);
          }
          answer.mutable_lease()->set_seconds(20);
          const absl::Time sent = now - absl::Milliseconds(below(6000));
          lease_until = std::max(lease_until, sent + absl::Seconds(20));
          apply(supervisor.OnAnswer(answer, sent, now));
          break;
        }
        case 1: {
          if (alive.empty()) break;
          const RankKey key = std::next(alive.begin(), below(alive.size()))->first;
          alive.erase(key);
          apply(supervisor.OnExit(key, ProcessEnd{static_cast<int>(below(3)) * 20, 0, ""}, now));
          break;
        }
        case 2: {
          if (alive.empty()) break;
          const RankKey key = std::next(alive.begin(), below(alive.size()))->first;
          apply(supervisor.OnLine(key, lines::Progress{"train", step, 200, {}}, now, now));
          break;
        }
        default: {
          v1::SynchronizeRequest request;
          supervisor.FillReport(now, &request);
          break;
        }
      }
      if (HasFatalFailure()) return;
    }
  }
}

TEST(ExitClassificationTest, NamesTheClassOfEveryEnd) {
  struct Case {
    ProcessEnd end;
    LastWords words;
    v1::FailureClass failure_class;
    std::string message;
    bool stopped = false;
  };
  const lines::Failed oom{"resource", "CUDA out of memory"};
  const Case cases[] = {
      {{0, 0, ""}, {{}, lines::Done{}, ""}, v1::FAILURE_CLASS_UNSPECIFIED, ""},
      {{0, 0, ""}, {}, v1::FAILURE_CLASS_INTERNAL, "ended with exit code 0 without saying that it was done"},
      {{40, 0, ""}, {{}, lines::Done{true}, ""}, v1::FAILURE_CLASS_UNSPECIFIED, "", true},
      {{40, 0, ""}, {{}, {}, "the lease ran out"}, v1::FAILURE_CLASS_UNSPECIFIED, "", true},
      {{2, 0, ""}, {}, v1::FAILURE_CLASS_USER, "ended with exit code 2 without saying why"},
      {{10, 0, ""}, {}, v1::FAILURE_CLASS_USER, "ended with exit code 10 without saying why"},
      {{20, 0, ""}, {oom, {}, ""}, v1::FAILURE_CLASS_RESOURCE, "CUDA out of memory"},
      {{30, 0, ""}, {}, v1::FAILURE_CLASS_INFRASTRUCTURE, "ended with exit code 30 without saying why"},
      {{70, 0, ""}, {}, v1::FAILURE_CLASS_INTERNAL, "ended with exit code 70 without saying why"},
      {{1, 0, ""}, {}, v1::FAILURE_CLASS_INTERNAL, "ended with exit code 1 without saying why"},
      {{-1, 9, ""}, {}, v1::FAILURE_CLASS_INFRASTRUCTURE, "killed by signal 9 (out of memory?)"},
      {{-1, 11, ""}, {}, v1::FAILURE_CLASS_INFRASTRUCTURE, "killed by signal 11"},
      {{-1, 6, ""}, {oom, {}, ""}, v1::FAILURE_CLASS_RESOURCE, "CUDA out of memory"},
      {{-1, 9, ""},
       {oom, {}, "the lease ran out"},
       v1::FAILURE_CLASS_INFRASTRUCTURE,
       "killed by its worker: the lease ran out"},
  };
  for (const Case& c : cases) {
    const v1::RankExit exit = ClassifyExit(c.end, c.words);
    SCOPED_TRACE(fmt::format("code {} signal {}", c.end.exit_code, c.end.signal));
    EXPECT_EQ(exit.failure_class(), c.failure_class);
    EXPECT_EQ(exit.message(), c.message);
    EXPECT_EQ(exit.stopped(), c.stopped);
  }
}

TEST(ExitClassificationTest, MakesTheLogTailValidUtf8) {
  const std::string tail =
      "ok \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 bad \xFF \xC3 \xED\xA0\x80 \xF4\x90\x80\x80 \xC0\xAF end\xE2\x82";
  const v1::RankExit exit = ClassifyExit(ProcessEnd{1, 0, tail}, {});
  EXPECT_EQ(exit.log_tail(), "ok \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 bad ? ? ??? ???? ?? end??");
  EXPECT_EQ(ClassifyExit(ProcessEnd{1, 0, std::string(9000, 'x')}, {}).log_tail().size(), 4096u);
  // A tail that is cut begins with a whole line.
  EXPECT_EQ(ClassifyExit(ProcessEnd{1, 0, std::string(9000, 'x') + "\nlast\n"}, {}).log_tail(), "last\n");
}

}  // namespace
}  // namespace longspan::worker
