// The trainer as a whole, from outside: what a daemon and a person see of it.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>

#include "tests/trainer/run/tiny_job.h"
#include "tests/trainer/run/trainer_process.h"
#include "worker/trainer/checkpoint/checkpoint.h"
#include "worker/trainer/gpu/gpu_device.h"
#include "worker/trainer/model/base_tensors.h"
#include "worker/trainer/model/safetensors.h"
#include "worker/trainer/run.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::TinyJob;
using testing::TrainerProcess;

std::string Text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> FilesIn(const fs::path& folder) {
  std::vector<std::string> names;
  if (!fs::exists(folder)) return names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// What longspan-worker asks before it offers GPUs.
TEST(Version, SaysWhatThisProgramTrainsOn) {
  const std::string command = (longspan::testing::BinDir() / "longspan-trainer").string() + " version --json";
  FILE* const pipe = ::popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  char line[65536] = "";
  EXPECT_NE(std::fgets(line, sizeof line, pipe), nullptr);
  EXPECT_EQ(::pclose(pipe), 0);
  const nlohmann::json version = nlohmann::json::parse(line);
  EXPECT_EQ(version.at("version"), kVersion);
  EXPECT_EQ(version.at("cuda"), gpu::IsBuilt());
  EXPECT_EQ(version.at("gpus").size(), static_cast<size_t>(gpu::Count()));
}

class RunTest : public ::testing::Test {
 protected:
  int RunToEnd(const std::string& command, const nlohmann::json& changes, const std::string& work,
               const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {command, job_.SpecFile(changes), "--work", Work(work)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    TrainerProcess::Options options;
    options.log = Log();
    return TrainerProcess(arguments, options).WaitForExit();
  }
  // As a daemon starts it.
  std::unique_ptr<TrainerProcess> StartUnderService(const nlohmann::json& changes, const std::string& work, int attempt,
                                                    const std::vector<std::string>& more = {"--resume-from", "none"},
                                                    rlim_t file_bytes_max = RLIM_INFINITY) {
    std::vector<std::string> arguments = {"run",       job_.SpecFile(changes), "--work", Work(work), "--job", "job-1",
                                          "--attempt", std::to_string(attempt)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    TrainerProcess::Options options;
    options.lines = true;
    options.log = Log();
    options.file_bytes_max = file_bytes_max;
    return std::make_unique<TrainerProcess>(arguments, options);
  }
  // Two ranks, rank 0 first, which tells rank 1 its address through the lines. Else as by hand.
  std::vector<std::unique_ptr<TrainerProcess>> StartGang(const std::string& command, const nlohmann::json& changes,
                                                         const std::string& work) {
    std::vector<std::unique_ptr<TrainerProcess>> gang;
    for (const char* rank : {"0", "1"}) {
      TrainerProcess::Options options;
      options.log = Log();
      options.lines = true;
      const std::vector<std::string> arguments = {
          command,     job_.SpecFile(changes), "--work", Work(work), "--job", "gang", "--advertise-address",
          "127.0.0.1", "--world-size",         "2",      "--rank",   rank};
      gang.push_back(std::make_unique<TrainerProcess>(arguments, options));
    }
    const auto address = gang[0]->Await<lines::Rendezvous>();
    EXPECT_TRUE(address) << Text(Log());
    if (address) gang[1]->Send(*address);
    return gang;
  }
  // The larger exit code.
  int RunGang(const std::string& command, const nlohmann::json& changes, const std::string& work) {
    int code = 0;
    for (auto& rank : StartGang(command, changes, work)) code = std::max(code, rank->WaitForExit());
    return code;
  }
  // The folder of the job's model gets weights: what it would draw at random, so that the base can be evaluated.
  void WriteWeights() {
    const std::string model = (job_.folder() / "model").string();
    const ModelConfig config = ReadModelConfig(model);
    std::vector<NamedTensor> tensors;
    const auto base = RandomBaseTensors(config, 3);
    for (const TensorShape& tensor : BaseTensorShapes(config)) {
      tensors.emplace_back(tensor.name, base->Read(tensor.name));
    }
    WriteSafetensors(model + "/model.safetensors", tensors);
  }
  // Of all steps and evaluations in between.
  std::vector<double> Losses(const std::string& work) const {
    std::vector<double> losses;
    std::istringstream lines(Text(job_.folder() / work / "progress.jsonl"));
    for (std::string line; std::getline(lines, line);) losses.push_back(nlohmann::json::parse(line).at("loss"));
    return losses;
  }
  nlohmann::json LastProgress(const std::string& work) const {
    std::istringstream lines(Text(job_.folder() / work / "progress.jsonl"));
    std::string last;
    for (std::string line; std::getline(lines, line);) last = line;
    return nlohmann::json::parse(last);
  }
  std::string Work(const std::string& name) const { return (job_.folder() / name).string(); }
  std::string Log() const { return (job_.folder() / "log").string(); }
  fs::path Checkpoints(const std::string& work) const { return job_.folder() / work / "checkpoints"; }

  TinyJob job_;
  const nlohmann::json endless_ = {{"training", {{"steps", 1000000}}}, {"checkpoint", {{"every_steps", 0}}}};
};

TEST_F(RunTest, RunLeavesEverythingAndASecondRunFindsItDone) {
  ASSERT_EQ(RunToEnd("run", {}, "work"), 0) << Text(Log());
  for (const char* name :
       {"adapter/adapter_model.safetensors", "adapter/extended_config/config.json", "merged/model.safetensors",
        "merged/tokenizer.json", "evaluation.json", "run_card.json", "run_card.md", "progress.jsonl"}) {
    EXPECT_TRUE(fs::exists(job_.folder() / "work" / name)) << name;
  }
  const auto written = fs::last_write_time(job_.folder() / "work" / "run_card.json");
  ASSERT_EQ(RunToEnd("run", {}, "work"), 0) << Text(Log());
  EXPECT_EQ(fs::last_write_time(job_.folder() / "work" / "run_card.json"), written);
  for (const std::string& name : FilesIn(job_.folder() / "work")) EXPECT_NE(name[0], '.') << "left behind: " << name;
}

TEST_F(RunTest, SaveAndResumeIsBitEqualAlsoAfterTheNewestCheckpointIsDamaged) {
  ASSERT_EQ(RunToEnd("train", {}, "straight"), 0) << Text(Log());
  ASSERT_EQ(RunToEnd("train", {{"training", {{"steps", 4}}}}, "resumed"), 0) << Text(Log());
  const fs::path damaged = Checkpoints("resumed") / "step-00000004.attempt-1" / "optimizer.safetensors";
  fs::resize_file(damaged, fs::file_size(damaged) - 1);
  ASSERT_EQ(RunToEnd("train", {}, "resumed"), 0) << Text(Log());
  EXPECT_THAT(Text(Log()), HasSubstr("is damaged"));
  for (const char* file : {"optimizer.safetensors", "adapter_model.safetensors"}) {
    EXPECT_EQ(Text(Checkpoints("resumed") / "step-00000006.attempt-2" / file),
              Text(Checkpoints("straight") / "step-00000006.attempt-1" / file))
        << file;
  }
}

TEST_F(RunTest, AJobWithProductsInEightBitsExportsTheBasesOwnWeights) {
  const auto config_path = job_.folder() / "model/config.json";
  nlohmann::json config = nlohmann::json::parse(Text(config_path));
  config.update({{"hidden_size", 32}, {"intermediate_size", 48}});
  std::ofstream(config_path) << config.dump();
  ASSERT_EQ(RunToEnd("run", {{"training", {{"dtype", "bf16"}}}}, "bf16"), 0) << Text(Log());
  ASSERT_EQ(RunToEnd("run", {{"training", {{"fp8", true}}}}, "fp8"), 0) << Text(Log());
  const auto merged = [&](const char* work) {
    return trainer::SafetensorsFile::Open((job_.folder() / work / "merged/model.safetensors").string());
  };
  const trainer::SafetensorsFile bf16 = merged("bf16"), fp8 = merged("fp8");
  const char* const frozen = "model.layers.1.mlp.down_proj.weight";
  EXPECT_TRUE(at::equal(fp8.View(frozen), bf16.View(frozen)));
  EXPECT_NE(Losses("fp8"), Losses("bf16"));
  const auto evaluation = nlohmann::json::parse(Text(job_.folder() / "fp8/evaluation.json"));
  EXPECT_EQ(evaluation.at("base_weights"), "fp8");
  std::set<std::string> rows;
  for (const nlohmann::json& row : evaluation.at("rows")) rows.insert(row.at("model"));
  EXPECT_EQ(rows, (std::set<std::string>{"extended", "merged"}));
  EXPECT_EQ(nlohmann::json::parse(Text(job_.folder() / "fp8/run_card.json")).at("base_weights"), "fp8");
  EXPECT_NE(Text(Log()).find("in 8 bits"), std::string::npos);
}

TEST_F(RunTest, TwoRanksEqualOneAndSeeTheSameData) {
  const nlohmann::json one_step = {{"training", {{"steps", 1}}}};
  ASSERT_EQ(RunToEnd("train", one_step, "one", {"--dump-gradients", Work("dump-one")}), 0) << Text(Log());
  // Rank 1 learns the address of rank 0 through the lines, as under a daemon.
  auto first = StartUnderService(one_step, "two", 1,
                                 {"--resume-from", "none", "--world-size", "2", "--rank", "0", "--dump-gradients",
                                  Work("dump-two"), "--advertise-address", "127.0.0.1"});
  auto second = StartUnderService(
      one_step, "two", 1,
      {"--resume-from", "none", "--world-size", "2", "--rank", "1", "--advertise-address", "127.0.0.1"});
  const auto address = first->Await<lines::Rendezvous>();
  ASSERT_TRUE(address) << Text(Log());
  second->Send(*address);
  EXPECT_EQ(first->WaitForExit(), 0) << Text(Log());
  EXPECT_EQ(second->WaitForExit(), 0) << Text(Log());
  const auto one = SafetensorsFile::Open(Work("dump-one") + "/step-00000001.safetensors");
  const auto two = SafetensorsFile::Open(Work("dump-two") + "/step-00000001.safetensors");
  ASSERT_EQ(one.entries().size(), two.entries().size());
  EXPECT_TRUE(one.View("input_ids").equal(two.View("input_ids")));
  for (const auto& [name, entry] : one.entries()) {
    if (name == "input_ids") continue;
    const at::Tensor expected = one.View(name);
    const double scale = std::max(expected.abs().max().item<double>(), 1e-12);
    EXPECT_LT((two.View(name) - expected).abs().max().item<double>() / scale, 1e-5) << name;
  }
  // The gang exported and evaluated together.
  EXPECT_TRUE(fs::exists(job_.folder() / "two" / "run_card.json"));
}

TEST_F(RunTest, RanksThatShareWeightsDoWhatThoseWithWholeOnesDo) {
  // Three sequences a step: the second rank makes two passes. One window of 512 tokens: the first rank has none.
  const nlohmann::json whole = {{"resources", {{"slots", 2}}},
                                {"model", {{"init", "weights"}}},
                                {"evaluation", {{"lengths", {16, 512}}, {"every_steps", 3}}}};
  WriteWeights();
  nlohmann::json shared = whole;
  shared["resources"]["shard_weights"] = true;
  ASSERT_EQ(RunGang("run", whole, "whole"), 0) << Text(Log());
  ASSERT_EQ(RunGang("run", shared, "shared"), 0) << Text(Log());
  EXPECT_EQ(Losses("shared"), Losses("whole"));
  EXPECT_EQ(Losses("shared").size(), 6u + 2u);
  for (const char* file : {"merged/model.safetensors", "adapter/adapter_model.safetensors"}) {
    EXPECT_EQ(Text(job_.folder() / "shared" / file), Text(job_.folder() / "whole" / file)) << file;
  }
  const auto rows = [&](const std::string& work) {
    return nlohmann::json::parse(Text(job_.folder() / work / "evaluation.json")).at("rows");
  };
  EXPECT_EQ(rows("shared"), rows("whole"));
  EXPECT_EQ(rows("shared").size(), 2u * 3u);
  const auto last = LastProgress("shared");
  EXPECT_GT(last.at("allgather_bytes_total"), 0);
  EXPECT_FALSE(LastProgress("whole").contains("allgather_bytes_total"));
  for (const char* name : {"all_reduce_bytes", "all_reduce_seconds", "all_gather_bytes", "all_gather_seconds"}) {
    EXPECT_GT(last.at(fmt::format("collective_{}_total", name)), 0) << name;
  }
  EXPECT_EQ(last.at("collective_all_gather_bytes_total"), last.at("allgather_bytes_total"));
  EXPECT_FALSE(last.contains("collective_exchange_bytes_total"));
  EXPECT_FALSE(LastProgress("whole").contains("collective_all_gather_bytes_total"));

  // From a checkpoint on, and exported and evaluated alone, the same.
  nlohmann::json four_steps = shared;
  four_steps["training"]["steps"] = 4;
  ASSERT_EQ(RunGang("train", four_steps, "resumed"), 0) << Text(Log());
  ASSERT_EQ(RunGang("train", shared, "resumed"), 0) << Text(Log());
  for (const char* file : {"optimizer.safetensors", "adapter_model.safetensors"}) {
    EXPECT_EQ(Text(Checkpoints("resumed") / "step-00000006.attempt-2" / file),
              Text(Checkpoints("whole") / "step-00000006.attempt-1" / file))
        << file;
  }
  ASSERT_EQ(RunToEnd("export", shared, "resumed"), 0) << Text(Log());
  EXPECT_EQ(Text(job_.folder() / "resumed/merged/model.safetensors"),
            Text(job_.folder() / "whole/merged/model.safetensors"));
  ASSERT_EQ(RunGang("evaluate", shared, "resumed"), 0) << Text(Log());
  EXPECT_EQ(rows("resumed").size(), 2u * 3u);
}

TEST_F(RunTest, AKilledRankThatSharesWeightsEndsTheOthersAsAnInfrastructureFailure) {
  nlohmann::json shared = endless_;
  shared["resources"] = {{"slots", 2}, {"shard_weights", true}};
  auto gang = StartGang("run", shared, "work");
  ASSERT_TRUE(gang[0]->Await<lines::Progress>([](const auto& line) { return line.phase == "train" && line.step >= 2; }))
      << Text(Log());
  gang[1]->Kill();
  EXPECT_EQ(gang[0]->WaitForExit(), 30);
}

TEST_F(RunTest, RanksThatShareSequencesEqualOneFromPreparingToExport) {
  const nlohmann::json three_steps = {{"training", {{"steps", 3}}}, {"evaluation", {{"every_steps", 2}}}};
  ASSERT_EQ(RunToEnd("run", three_steps, "one"), 0) << Text(Log());
  nlohmann::json shared = three_steps;
  shared["resources"] = {{"slots", 2}, {"sequence_parallel", 2}};
  const auto rank = [&](const char* number) {
    return StartUnderService(
        shared, "two", 1,
        {"--resume-from", "none", "--world-size", "2", "--rank", number, "--advertise-address", "127.0.0.1"});
  };
  auto first = rank("0"), second = rank("1");
  const auto address = first->Await<lines::Rendezvous>();
  ASSERT_TRUE(address) << Text(Log());
  second->Send(*address);
  ASSERT_TRUE(first->Await<lines::Done>()) << Text(Log());
  EXPECT_EQ(first->WaitForExit(), 0) << Text(Log());
  EXPECT_EQ(second->WaitForExit(), 0) << Text(Log());
  const auto lines_of = [&](const std::string& work) {
    std::ifstream progress(Work(work) + "/progress.jsonl");
    std::vector<nlohmann::json> lines;
    for (std::string line; std::getline(progress, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  };
  const auto one = lines_of("one"), two = lines_of("two");
  ASSERT_EQ(one.size(), 3u + 2u);  // and two lengths after the second step
  ASSERT_EQ(two.size(), one.size());
  for (size_t line = 0; line < one.size(); ++line) {
    EXPECT_NEAR(two[line].at("loss").get<double>() / one[line].at("loss").get<double>(), 1.0, 1e-5) << two[line];
    if (one[line].contains("perplexity")) continue;
    EXPECT_EQ(two[line].at("tokens_total"), one[line].at("tokens_total"));
    EXPECT_NEAR(two[line].at("grad_norm").get<double>() / one[line].at("grad_norm").get<double>(), 1.0, 1e-4);
    EXPECT_GT(two[line].at("exchanged_bytes_total").get<double>(), 0) << two[line];
    EXPECT_EQ(two[line].at("collective_exchange_bytes_total"), two[line].at("exchanged_bytes_total"));
    EXPECT_GT(two[line].at("collective_exchange_seconds_total").get<double>(), 0) << two[line];
    EXPECT_FALSE(one[line].contains("collective_all_reduce_bytes_total"));
  }
  const auto table = nlohmann::json::parse(Text(Work("two") + "/evaluation.json")).at("rows");
  const auto expected = nlohmann::json::parse(Text(Work("one") + "/evaluation.json")).at("rows");
  ASSERT_EQ(table.size(), expected.size());
  for (size_t row = 0; row < table.size(); ++row) {
    EXPECT_EQ(table[row].at("tokens"), expected[row].at("tokens"));
    EXPECT_NEAR(table[row].at("loss").get<double>() / expected[row].at("loss").get<double>(), 1.0, 1e-5) << table[row];
  }
  EXPECT_TRUE(fs::exists(job_.folder() / "two" / "run_card.json"));
  EXPECT_TRUE(fs::exists(job_.folder() / "two" / "adapter" / "adapter_model.safetensors"));
}

TEST_F(RunTest, AStopOfOneRankStopsAllThatShareItsSequences) {
  nlohmann::json shared = endless_;
  shared["resources"] = {{"slots", 2}, {"sequence_parallel", 2}};
  const auto rank = [&](const char* number) {
    return StartUnderService(
        shared, "work", 1,
        {"--resume-from", "none", "--world-size", "2", "--rank", number, "--advertise-address", "127.0.0.1"});
  };
  auto first = rank("0"), second = rank("1");
  const auto address = first->Await<lines::Rendezvous>();
  ASSERT_TRUE(address) << Text(Log());
  second->Send(*address);
  ASSERT_TRUE(first->Await<lines::Progress>([](const auto& line) { return line.phase == "train"; })) << Text(Log());
  second->Send(lines::Stop{true, "one of the two"});
  EXPECT_EQ(first->WaitForExit(), 40) << Text(Log());
  EXPECT_EQ(second->WaitForExit(), 40) << Text(Log());
}

TEST_F(RunTest, AStopLineEndsWithACheckpointAndExitCode40) {
  auto trainer = StartUnderService(endless_, "work", 1);
  ASSERT_TRUE(trainer->Await<lines::Progress>([](const auto& line) { return line.phase == "train" && line.step >= 3; }))
      << Text(Log());
  trainer->Send(lines::Stop{true, "preempted by a test"});
  const auto checkpoint = trainer->Await<lines::Checkpoint>();
  ASSERT_TRUE(checkpoint) << Text(Log());
  const auto done = trainer->Await<lines::Done>();
  ASSERT_TRUE(done);
  EXPECT_TRUE(done->stopped);
  EXPECT_EQ(trainer->WaitForExit(), 40);

  // Under the service an unrecorded checkpoint does not count...
  auto fresh = StartUnderService(endless_, "work", 2);
  auto first_step = fresh->Await<lines::Progress>([](const auto& line) { return line.phase == "train"; });
  ASSERT_TRUE(first_step) << Text(Log());
  EXPECT_EQ(first_step->step, 1);
  fresh.reset();
  // ...and a recorded one is taken exactly, hash and all.
  auto wrong = StartUnderService(endless_, "work", 3,
                                 {"--resume-from", checkpoint->name, "--manifest-sha256", std::string(64, '0')});
  const auto failed = wrong->Await<lines::Failed>();
  ASSERT_TRUE(failed) << Text(Log());
  EXPECT_EQ(failed->failure_class, "infrastructure");
  EXPECT_EQ(wrong->WaitForExit(), 30);
  auto resumed = StartUnderService(
      endless_, "work", 4, {"--resume-from", checkpoint->name, "--manifest-sha256", checkpoint->manifest_sha256});
  first_step = resumed->Await<lines::Progress>([](const auto& line) { return line.phase == "train"; });
  ASSERT_TRUE(first_step) << Text(Log());
  EXPECT_EQ(first_step->step, checkpoint->step + 1);
}

TEST_F(RunTest, ADamagedCheckpointIsPassedOverThoughTheServerNamesIt) {
  auto trainer = StartUnderService(endless_, "work", 1);
  ASSERT_TRUE(trainer->Await<lines::Progress>([](const auto& line) { return line.phase == "train"; })) << Text(Log());
  trainer->Send(lines::CheckpointNow{});
  const auto first = trainer->Await<lines::Checkpoint>();
  ASSERT_TRUE(first) << Text(Log());
  trainer->Send(lines::Stop{true, "enough"});
  const auto second = trainer->Await<lines::Checkpoint>();
  ASSERT_TRUE(second) << Text(Log());
  EXPECT_EQ(trainer->WaitForExit(), 40);
  ASSERT_GT(second->step, first->step);
  std::ofstream(Checkpoints("work") / second->name / "optimizer.safetensors", std::ios::app) << "x";

  const std::vector<std::string> newest = {"--resume-from", second->name, "--manifest-sha256", second->manifest_sha256};
  auto resumed = StartUnderService(endless_, "work", 2, newest);
  const auto warning = resumed->Await<lines::Warning>();
  ASSERT_TRUE(warning) << Text(Log());
  EXPECT_THAT(warning->message, HasSubstr("goes on from " + first->name));
  const auto step = resumed->Await<lines::Progress>([](const auto& line) { return line.phase == "train"; });
  ASSERT_TRUE(step) << Text(Log());
  EXPECT_EQ(step->step, first->step + 1);
  resumed->Send(lines::Stop{false, "enough"});
  EXPECT_EQ(resumed->WaitForExit(), 40);

  // Nothing whole is left: to start afresh would hide that.
  std::ofstream(Checkpoints("work") / first->name / "optimizer.safetensors", std::ios::app) << "x";
  auto lost = StartUnderService(endless_, "work", 3, newest);
  const auto failed = lost->Await<lines::Failed>();
  ASSERT_TRUE(failed) << Text(Log());
  EXPECT_EQ(failed->failure_class, "infrastructure");
  EXPECT_THAT(failed->message, HasSubstr("no other checkpoint is whole"));
}

TEST_F(RunTest, CheckpointNowSavesAndOlderOnesGoOnlyWhenTheServerRecordedIt) {
  nlohmann::json changes = endless_;
  changes["checkpoint"]["keep_last"] = 1;
  auto trainer = StartUnderService(changes, "work", 1);
  ASSERT_TRUE(trainer->Await<lines::Progress>([](const auto& line) { return line.phase == "train"; })) << Text(Log());
  trainer->Send(lines::CheckpointNow{});
  const auto first = trainer->Await<lines::Checkpoint>();
  ASSERT_TRUE(first) << Text(Log());
  trainer->Send(lines::CheckpointNow{});
  const auto second = trainer->Await<lines::Checkpoint>();
  ASSERT_TRUE(second) << Text(Log());
  EXPECT_GT(second->step, first->step);
  EXPECT_TRUE(fs::exists(Checkpoints("work") / first->name / "MANIFEST.json"));
  trainer->Send(lines::CheckpointRecorded{second->name});
  // It takes effect at a step border: the stop that follows comes after it.
  trainer->Send(lines::Stop{false, "enough"});
  EXPECT_EQ(trainer->WaitForExit(), 40);
  EXPECT_FALSE(fs::exists(Checkpoints("work") / first->name));
  EXPECT_TRUE(fs::exists(Checkpoints("work") / second->name / "MANIFEST.json"));
}

TEST_F(RunTest, AKilledRankEndsTheOthersAsAnInfrastructureFailure) {
  const std::vector<std::string> gang = {"--resume-from",       "none",      "--world-size", "2",
                                         "--advertise-address", "127.0.0.1", "--rank"};
  std::vector<std::string> zero = gang, one = gang;
  zero.push_back("0");
  one.push_back("1");
  auto first = StartUnderService(endless_, "work", 1, zero);
  auto second = StartUnderService(endless_, "work", 1, one);
  const auto address = first->Await<lines::Rendezvous>();
  ASSERT_TRUE(address);
  second->Send(*address);
  ASSERT_TRUE(first->Await<lines::Progress>([](const auto& line) { return line.phase == "train" && line.step >= 2; }))
      << Text(Log());
  second->Kill();
  const auto begin = std::chrono::steady_clock::now();
  const auto failed = first->Await<lines::Failed>();
  ASSERT_TRUE(failed) << Text(Log());
  EXPECT_EQ(failed->failure_class, "infrastructure");
  EXPECT_EQ(first->WaitForExit(), 30);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST_F(RunTest, WithoutItsDaemonATrainerEndsByItself) {
  auto closed = StartUnderService(endless_, "closed", 1);
  ASSERT_TRUE(closed->Await<lines::Progress>());
  closed->CloseLines();
  EXPECT_EQ(closed->WaitForExit(), 30);
  auto expired = StartUnderService(endless_, "expired", 1);
  ASSERT_TRUE(expired->Await<lines::Progress>());
  expired->Send(lines::Lease{60});
  expired->Send(lines::Lease{0.05});
  EXPECT_EQ(expired->WaitForExit(), 30);
}

TEST_F(RunTest, AFullDiskDuringACheckpointIsAnInfrastructureFailureThatLosesNothing) {
  ASSERT_EQ(RunToEnd("train", {{"training", {{"steps", 2}}}}, "work"), 0) << Text(Log());
  const auto before = FilesIn(Checkpoints("work"));
  ASSERT_EQ(before.size(), 1u);
  // No file may grow beyond the adapter but below the optimizer's state: the write fails half way.
  const auto limit = fs::file_size(Checkpoints("work") / before[0] / "adapter_model.safetensors") + 1000;
  auto trainer = StartUnderService({}, "work", 2, {"--resume-from", before[0]}, limit);
  const auto failed = trainer->Await<lines::Failed>();
  ASSERT_TRUE(failed) << Text(Log());
  EXPECT_EQ(failed->failure_class, "infrastructure");
  EXPECT_THAT(failed->message, HasSubstr("cannot write checkpoint step-00000004.attempt-2"));
  EXPECT_EQ(trainer->WaitForExit(), 30);
  EXPECT_EQ(FilesIn(Checkpoints("work")), before);
  EXPECT_EQ(LoadCheckpoint(Checkpoints("work"), before[0]).state.step, 2);
}

TEST_F(RunTest, StepsWithoutAUsableLossAreSkippedAndTenInARowFailTheJob) {
  job_.WriteModel(/*initializer_range=*/1e30);  // every product overflows
  auto trainer = StartUnderService({{"training", {{"steps", 100}}}}, "work", 1);
  const auto last =
      trainer->Await<lines::Progress>([](const auto& line) { return line.phase == "train" && line.step == 9; });
  ASSERT_TRUE(last) << Text(Log());
  EXPECT_EQ(last->values.at("nonfinite_steps"), 9);
  const auto failed = trainer->Await<lines::Failed>();
  ASSERT_TRUE(failed) << Text(Log());
  EXPECT_EQ(failed->failure_class, "user");
  EXPECT_THAT(failed->message, HasSubstr("10 steps in a row"));
  EXPECT_EQ(trainer->WaitForExit(), 10);
}

TEST_F(RunTest, MistakesInFlagsAndFilesAreABadSpec) {
  EXPECT_EQ(RunToEnd("train", {}, "work", {"--no-such-flag"}), 2);
  EXPECT_EQ(RunToEnd("train", {}, "work", {"--rank", "1"}), 2);
  EXPECT_EQ(RunToEnd("train", {}, "work", {"--world-size", "2"}), 2);
  EXPECT_EQ(RunToEnd("train", {{"training", {{"learning_rat", 1}}}}, "work"), 2);
  EXPECT_THAT(Text(Log()), HasSubstr("learning_rate"));
  EXPECT_EQ(RunToEnd("export", {}, "work"), 10) << "there is nothing to export yet";
  EXPECT_EQ(RunToEnd("evaluate", {}, "work", {"--checkpoint", "step-00000001.attempt-1"}), 10);
}

TEST_F(RunTest, TheExampleOfRecordsTravelsWithTheDataset) {
  const auto source = job_.folder() / "records.jsonl";
  std::ofstream file(source);
  for (int i = 0; i < 8; ++i) file << R"({"instruction": "Who?", "output": "the king said"})" << "\n";
  file.close();
  const nlohmann::json changes = {
      {"data", {{"sources", {source.string()}}, {"template", "llama2"}, {"holdout_fraction", 0}}}};
  auto trainer = StartUnderService(changes, "work", 1);
  const auto dataset =
      trainer->Await<lines::Artifact>([](const lines::Artifact& artifact) { return artifact.kind == "dataset"; });
  ASSERT_TRUE(dataset) << Text(Log());
  EXPECT_EQ(dataset->excerpt, "prompt | [INST]Who?[/INST]\nanswer | the king said</s>\n");
}

}  // namespace
}  // namespace longspan::trainer
