// The fake trainer itself: a gang of two runs to its end, stops on request, resumes, and fails as told.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <sstream>

#include "proto/trainer_lines/trainer_lines.h"
#include "tests/temporary_folder.h"
#include "tests/test_paths.h"
#include "worker/storage/storage.h"

namespace longspan {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// One rank as a daemon would start it.
class RankProcess {
 public:
  RankProcess(const fs::path& folder, std::vector<std::string> arguments) {
    int out[2], in[2];
    if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(in, O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
    // Room for all that a short run writes: what finds none is dropped when it is progress.
    if (::fcntl(out[1], F_SETPIPE_SZ, 1 << 18) < 0) throw std::runtime_error("the pipe does not grow");
    const std::string program = testing::BinDir() / "longspan-fake-trainer";
    arguments.insert(arguments.begin(), program);
    arguments.insert(arguments.end(),
                     {"--lines-out-fd", std::to_string(out[1]), "--lines-in-fd", std::to_string(in[0])});
    std::vector<char*> argv;
    argv.reserve(arguments.size() + 1);
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const std::string log = folder / "log";
    pid_ = ::fork();
    if (pid_ == 0) {
      const int file = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
      ::dup2(file, 1);
      ::dup2(file, 2);
      ::fcntl(out[1], F_SETFD, 0);
      ::fcntl(in[0], F_SETFD, 0);
      ::execv(program.c_str(), argv.data());
      ::_exit(127);
    }
    ::close(out[1]);
    ::close(in[0]);
    from_ = out[0];
    to_ = in[1];
  }
  ~RankProcess() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::close(from_);
    ::close(to_);
  }

  void Send(const lines::ToTrainer& message) {
    const std::string text = lines::Encode(message);
    ASSERT_EQ(::write(to_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }

  // The next message; empty at the end.
  std::optional<lines::FromTrainer> Receive() {
    for (;;) {
      while (auto line = buffer_.Next()) {
        bool malformed = false;
        if (auto message = lines::DecodeFromTrainer(*line, &malformed)) return message;
        ++malformed_;
      }
      char bytes[4096];
      const ssize_t got = ::read(from_, bytes, sizeof bytes);
      if (got <= 0) return std::nullopt;
      buffer_.Append(std::string_view(bytes, static_cast<size_t>(got)));
    }
  }
  template <class T>
  std::optional<T> ReceiveA() {
    while (auto message = Receive()) {
      if (std::holds_alternative<T>(*message)) return std::get<T>(*message);
    }
    return std::nullopt;
  }
  int Wait() {
    while (Receive()) {
    }
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  int64_t damaged() const { return malformed_ + buffer_.dropped(); }

 private:
  pid_t pid_ = 0;
  int from_ = -1, to_ = -1;
  lines::LineBuffer buffer_;
  int64_t malformed_ = 0;
};

class FakeTrainerTest : public ::testing::Test {
 protected:
  ~FakeTrainerTest() override {
    if (HasFailure()) std::cerr << std::ifstream(folder_ / "log").rdbuf();
  }

  void WriteSpec(const std::string& labels) {
    std::ofstream(folder_ / "spec.json")
        << R"({"name": "f", "model": {"path": "/m"}, "data": {"sources": ["/d"]}, "context_length": 64,
      "checkpoint": {"every_steps": 4}, "resources": {"slots": 2}, "labels": {)"
        << labels << "}}";
  }
  std::unique_ptr<RankProcess> Start(int rank, std::vector<std::string> more = {}, const std::string& command = "run") {
    std::vector<std::string> arguments = {command,  folder_ / "spec.json", "--work",       folder_ / "work",
                                          "--rank", std::to_string(rank),  "--world-size", "2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return std::make_unique<RankProcess>(folder_, arguments);
  }
  void Meet(RankProcess& first, RankProcess& second) {
    second.Send(lines::Rendezvous{first.ReceiveA<lines::Rendezvous>().value().address});
  }

  const testing::TemporaryFolder temporary_folder_;
  const fs::path folder_ = temporary_folder_.path();
};

TEST_F(FakeTrainerTest, AGangRunsToItsEnd) {
  WriteSpec(R"("fake.steps": 10, "fake.step_ms": 0, "fake.garbage_lines": 3)");
  auto first = Start(0), second = Start(1);
  Meet(*first, *second);
  std::vector<int64_t> steps, saved;
  std::vector<std::string> artifacts;
  int evaluations = 0;
  bool done = false;
  while (auto message = first->Receive()) {
    if (auto* progress = std::get_if<lines::Progress>(&*message)) steps.push_back(progress->step);
    if (auto* checkpoint = std::get_if<lines::Checkpoint>(&*message)) saved.push_back(checkpoint->step);
    if (auto* artifact = std::get_if<lines::Artifact>(&*message)) artifacts.push_back(artifact->kind);
    if (std::holds_alternative<lines::Evaluation>(*message)) ++evaluations;
    if (auto* end = std::get_if<lines::Done>(&*message)) done = !end->stopped;
  }
  EXPECT_THAT(steps, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9, 10));
  EXPECT_THAT(saved, ElementsAre(4, 8, 10));
  EXPECT_THAT(artifacts, ElementsAre("adapter", "merged"));
  EXPECT_EQ(evaluations, 6);
  EXPECT_TRUE(done);
  EXPECT_EQ(first->damaged(), 3);
  EXPECT_EQ(first->Wait(), lines::kExitDone);
  EXPECT_EQ(second->Wait(), lines::kExitDone);
}

TEST_F(FakeTrainerTest, AStopToOneRankStopsAllAndTheNextAttemptResumes) {
  WriteSpec(R"("fake.steps": 100000, "fake.step_ms": 1)");
  lines::Checkpoint last;
  {
    auto first = Start(0), second = Start(1);
    Meet(*first, *second);
    ASSERT_TRUE(first->ReceiveA<lines::Progress>());
    second->Send(lines::Stop{true, "test"});
    while (auto message = first->Receive()) {
      if (auto* checkpoint = std::get_if<lines::Checkpoint>(&*message)) last = *checkpoint;
    }
    EXPECT_EQ(first->Wait(), lines::kExitStopped);
    EXPECT_EQ(second->Wait(), lines::kExitStopped);
  }
  const std::vector<std::string> resume = {"--attempt",         "2", "--resume-from", last.name, "--manifest-sha256",
                                           last.manifest_sha256};
  auto first = Start(0, resume), second = Start(1, resume);
  Meet(*first, *second);
  EXPECT_EQ(first->ReceiveA<lines::Progress>().value().step, last.step + 1);
}

// The losses that a run of one rank tells, from its first step on.
std::vector<double> LossesOf(RankProcess& rank) {
  std::vector<double> losses;
  while (auto progress = rank.ReceiveA<lines::Progress>()) losses.push_back(progress->values.at("loss"));
  return losses;
}

TEST_F(FakeTrainerTest, TheLossDependsOnEveryStepBefore) {
  WriteSpec(R"("fake.steps": 12, "fake.step_ms": 0)");
  const std::vector<double> whole = LossesOf(*Start(0, {"--world-size", "1"}));
  ASSERT_EQ(whole.size(), 12u);
  const std::string checkpoint = "step-00000008.attempt-1";
  const auto after = [&](int attempt) {
    return LossesOf(
        *Start(0, {"--world-size", "1", "--attempt", std::to_string(attempt), "--resume-from", checkpoint}));
  };
  EXPECT_EQ(after(2), std::vector(whole.begin() + 8, whole.end()));
  // A checkpoint that claims another step than was done: every later loss differs.
  const fs::path folder = folder_ / "work/checkpoints" / checkpoint;
  const auto replace = [](const fs::path& path, const std::string& from, const std::string& to) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    std::string changed = text.str();
    ASSERT_NE(changed.find(from), std::string::npos) << changed;
    std::ofstream(path) << changed.replace(changed.find(from), from.size(), to);
  };
  const std::string before = storage::Sha256HexOfFile(folder / "trainer_state.json");
  replace(folder / "trainer_state.json", "\"step\":8", "\"step\":7");
  replace(folder / "MANIFEST.json", before, storage::Sha256HexOfFile(folder / "trainer_state.json"));
  const std::vector<double> wrong = after(3);
  ASSERT_EQ(wrong.size(), 5u);
  for (size_t i = 0; i < 4; ++i) EXPECT_NE(wrong[i + 1], whole[8 + i]);
}

TEST_F(FakeTrainerTest, ADamagedCheckpointIsPassedOverForTheOneBefore) {
  WriteSpec(R"("fake.steps": 12, "fake.step_ms": 0)");
  const std::vector<double> whole = LossesOf(*Start(0, {"--world-size", "1"}));
  std::ofstream(folder_ / "work/checkpoints/step-00000008.attempt-1/trainer_state.json", std::ios::app) << "x";
  auto first = Start(0, {"--attempt", "2", "--resume-from", "step-00000008.attempt-1"});
  auto second = Start(1, {"--attempt", "2", "--resume-from", "step-00000008.attempt-1"});
  fs::remove_all(folder_ / "work/checkpoints/step-00000012.attempt-1");
  Meet(*first, *second);
  EXPECT_THAT(first->ReceiveA<lines::Warning>().value().message,
              HasSubstr("goes on from step-00000004.attempt-1 at step 4"));
  EXPECT_EQ(LossesOf(*first), std::vector(whole.begin() + 4, whole.end()));
  EXPECT_EQ(second->Wait(), lines::kExitDone);
}

TEST_F(FakeTrainerTest, ARankOfAnotherAttemptIsTurnedAway) {
  WriteSpec(R"("fake.steps": 2, "fake.step_ms": 0)");
  auto first = Start(0, {"--attempt", "2"}), stray = Start(1), second = Start(1, {"--attempt", "2"});
  const lines::Rendezvous address{first->ReceiveA<lines::Rendezvous>().value().address};
  stray->Send(address);
  EXPECT_EQ(stray->Wait(), lines::kExitInfrastructure);
  second->Send(address);
  EXPECT_EQ(first->Wait(), lines::kExitDone);
  EXPECT_EQ(second->Wait(), lines::kExitDone);
}

TEST_F(FakeTrainerTest, PhasesWithoutStepsStopOnRequest) {
  WriteSpec(R"("fake.steps": 2, "fake.step_ms": 0, "fake.prepare_ms": 600000, "fake.evaluate_ms": 600000)");
  auto prepare = Start(0, {}, "prepare");
  ASSERT_TRUE(prepare->ReceiveA<lines::Phase>());
  prepare->Send(lines::Stop{true, "test"});
  EXPECT_EQ(prepare->Wait(), lines::kExitStopped);
  auto run = Start(0, {"--world-size", "1"});
  ASSERT_EQ(run->ReceiveA<lines::Phase>().value().phase, "train");
  ASSERT_EQ(run->ReceiveA<lines::Phase>().value().phase, "evaluate");
  run->Send(lines::Stop{true, "test"});
  EXPECT_EQ(run->Wait(), lines::kExitStopped);
}

TEST_F(FakeTrainerTest, AWrongManifestIsRefused) {
  WriteSpec("");
  auto first = Start(0, {"--world-size", "1", "--resume-from", "step-00000004.attempt-1", "--manifest-sha256", "00"});
  EXPECT_EQ(first->ReceiveA<lines::Failed>().value().failure_class, "infrastructure");
  EXPECT_EQ(first->Wait(), lines::kExitInfrastructure);
}

TEST_F(FakeTrainerTest, OneRankFailsAndTheOtherLosesItsPeer) {
  WriteSpec(R"("fake.fail_at_step": 3, "fake.fail_rank": 1, "fake.exit_code": 10, "fake.step_ms": 0)");
  auto first = Start(0), second = Start(1);
  Meet(*first, *second);
  EXPECT_EQ(second->ReceiveA<lines::Failed>().value().failure_class, "user");
  EXPECT_EQ(second->Wait(), lines::kExitUserData);
  EXPECT_EQ(first->Wait(), lines::kExitInfrastructure);
}

TEST_F(FakeTrainerTest, ItEndsWithItsLease) {
  WriteSpec(R"("fake.hang_at_step": 1)");
  auto only = Start(0, {"--world-size", "1"});
  ASSERT_TRUE(only->ReceiveA<lines::Rendezvous>());
  only->Send(lines::Lease{0.05});
  EXPECT_EQ(only->ReceiveA<lines::Failed>().value().message, "the lease ran out");
  EXPECT_EQ(only->Wait(), lines::kExitInfrastructure);
}

TEST_F(FakeTrainerTest, PrepareAndBadSpecs) {
  WriteSpec("");
  auto prepare = Start(0, {}, "prepare");
  EXPECT_EQ(prepare->ReceiveA<lines::Artifact>().value().kind, "dataset");
  EXPECT_EQ(prepare->Wait(), lines::kExitDone);
  std::ofstream(folder_ / "spec.json") << "{}";
  EXPECT_EQ(Start(0)->Wait(), lines::kExitBadSpec);
}

}  // namespace
}  // namespace longspan
