#include "worker/trainer/checkpoint/checkpoint.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>

#include "worker/storage/storage.h"
#include "worker/trainer/checkpoint/adapter_config.h"
#include "worker/trainer/checkpoint/checkpoint_writer.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "checkpoint_test.XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  void TearDown() override { fs::remove_all(folder_); }

  static Snapshot SomeSnapshot(int64_t step, int64_t elements = 6) {
    at::manual_seed(step);
    Snapshot snapshot;
    snapshot.job = "job-1";
    snapshot.attempt = 3;
    snapshot.state.step = step;
    snapshot.state.updates = step - 1;
    snapshot.state.spec = {{"name", "test"}};
    snapshot.weights_file = "adapter_model.safetensors";
    const at::Tensor value = at::randn({elements});
    snapshot.weights = {{"a.weight", value}};
    snapshot.adapter_config = {{"r", 8}};
    snapshot.optimizer = {{"a.weight", value, at::randn({elements}), at::rand({elements})}};
    return snapshot;
  }

  std::vector<std::string> FilesIn(const fs::path& folder) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

  fs::path folder_;
};

TEST_F(CheckpointTest, WhatIsWrittenIsLoadedBitForBit) {
  const Snapshot snapshot = SomeSnapshot(200);
  const WrittenCheckpoint written = WriteCheckpoint(folder_, snapshot);
  EXPECT_EQ(written.name, "step-00000200.attempt-3");
  EXPECT_THAT(FilesIn(folder_ / written.name),
              ElementsAre("MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors",
                          "trainer_state.json"));
  const LoadedCheckpoint loaded = LoadCheckpoint(folder_, written.name, written.manifest_sha256);
  EXPECT_EQ(loaded.state.step, 200);
  EXPECT_EQ(loaded.state.updates, 199);
  EXPECT_EQ(loaded.state.spec, snapshot.state.spec);
  ASSERT_EQ(loaded.optimizer.size(), 1u);
  EXPECT_TRUE(loaded.optimizer[0].master.equal(snapshot.optimizer[0].master));
  EXPECT_TRUE(loaded.optimizer[0].first_moment.equal(snapshot.optimizer[0].first_moment));
  EXPECT_TRUE(loaded.optimizer[0].second_moment.equal(snapshot.optimizer[0].second_moment));
}

TEST_F(CheckpointTest, TheManifestListsEveryFileButItself) {
  const WrittenCheckpoint written = WriteCheckpoint(folder_, SomeSnapshot(1));
  const fs::path manifest_path = folder_ / written.name / "MANIFEST.json";
  const auto manifest = nlohmann::json::parse(std::ifstream(manifest_path));
  EXPECT_EQ(manifest["job"], "job-1");
  EXPECT_EQ(manifest["attempt"], 3);
  EXPECT_EQ(manifest["step"], 1);
  EXPECT_EQ(manifest["files"].size(), 4u);
  EXPECT_EQ(storage::Sha256HexOfFile(manifest_path), written.manifest_sha256);
}

TEST_F(CheckpointTest, EveryKindOfDamageIsFound) {
  for (const char* file :
       {"adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json", "MANIFEST.json"}) {
    for (const char* damage : {"flip", "truncate", "remove"}) {
      fs::remove_all(folder_ / "c");
      const WrittenCheckpoint written = WriteCheckpoint(folder_ / "c", SomeSnapshot(7));
      const fs::path path = folder_ / "c" / written.name / file;
      if (std::string(damage) == "flip") {
        std::fstream stream(path, std::ios::in | std::ios::out | std::ios::binary);
        stream.seekg(-2, std::ios::end);
        const char byte = static_cast<char>(stream.get() ^ 1);
        stream.seekp(-2, std::ios::end);
        stream.put(byte);
      } else if (std::string(damage) == "truncate") {
        fs::resize_file(path, fs::file_size(path) / 2);
      } else {
        fs::remove(path);
      }
      EXPECT_THROW(LoadCheckpoint(folder_ / "c", written.name, written.manifest_sha256), CorruptCheckpoint)
          << file << " " << damage;
    }
  }
}

TEST_F(CheckpointTest, AFullDiskIsAnInfrastructureErrorAndLeavesNothingBehind) {
  WriteCheckpoint(folder_, SomeSnapshot(1));
  // A limit on the size of a file stands in for the full disk: a write beyond it fails just as late.
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  ::getrlimit(RLIMIT_FSIZE, &old_limit);
  rlimit limit = old_limit;
  limit.rlim_cur = 64 * 1024;
  ::setrlimit(RLIMIT_FSIZE, &limit);
  EXPECT_THROW(WriteCheckpoint(folder_, SomeSnapshot(2, 1 << 20)), InfrastructureError);
  ::setrlimit(RLIMIT_FSIZE, &old_limit);
  EXPECT_THAT(FilesIn(folder_), ElementsAre("step-00000001.attempt-3"));
  EXPECT_EQ(LoadCheckpoint(folder_, "step-00000001.attempt-3").state.step, 1);
}

TEST_F(CheckpointTest, ANameThatExistsIsNeverOverwritten) {
  const WrittenCheckpoint written = WriteCheckpoint(folder_, SomeSnapshot(1));
  EXPECT_THROW(WriteCheckpoint(folder_, SomeSnapshot(1, 9)), InfrastructureError);
  EXPECT_EQ(LoadCheckpoint(folder_, written.name, written.manifest_sha256).optimizer[0].master.numel(), 6);
}

TEST_F(CheckpointTest, ListsNewestFirstAndOnlyWholeOnes) {
  Snapshot snapshot = SomeSnapshot(10);
  WriteCheckpoint(folder_, snapshot);
  snapshot.attempt = 12;
  WriteCheckpoint(folder_, snapshot);
  WriteCheckpoint(folder_, SomeSnapshot(9));
  fs::create_directories(folder_ / "step-00000011.attempt-1");  // no manifest
  fs::create_directories(folder_ / ".writing-step-00000012.attempt-1");
  fs::create_directories(folder_ / ".writing-step-00000012.attempt-9");
  EXPECT_THAT(ListCheckpoints(folder_),
              ElementsAre(CheckpointName{10, 12}, CheckpointName{10, 3}, CheckpointName{9, 3}));
  RemovePartialCheckpoints(folder_, 8);
  EXPECT_FALSE(fs::exists(folder_ / ".writing-step-00000012.attempt-1"));
  EXPECT_TRUE(fs::exists(folder_ / ".writing-step-00000012.attempt-9"));
  DeleteCheckpoint(folder_, {10, 12});
  EXPECT_THAT(ListCheckpoints(folder_), ElementsAre(CheckpointName{10, 3}, CheckpointName{9, 3}));
  EXPECT_THAT(ListCheckpoints(folder_ / "nowhere"), IsEmpty());
}

TEST_F(CheckpointTest, WritingHappensBesideTraining) {
  CheckpointWriter writer(folder_);
  Snapshot live = SomeSnapshot(5);
  at::Tensor value = live.weights[0].second;
  const at::Tensor before = value.clone();
  writer.Start(CopyToHost(live));
  value.zero_();  // training goes on
  const auto written = writer.Wait();
  ASSERT_TRUE(written);
  EXPECT_FALSE(writer.busy());
  EXPECT_TRUE(LoadCheckpoint(folder_, written->name).optimizer[0].master.equal(before));
}

TEST(CheckpointName, OnlyTheCanonicalFormIsOne) {
  EXPECT_EQ(ToString(CheckpointName{200, 3}), "step-00000200.attempt-3");
  EXPECT_EQ(ParseCheckpointName("step-00000200.attempt-3"), (CheckpointName{200, 3}));
  for (const char* text : {"", "step-200.attempt-3", "step-00000200", "step-00000200.attempt-",
                           "step-00000200.attempt-3x", "step-0000020x.attempt-3", "../step-00000200.attempt-3"}) {
    EXPECT_FALSE(ParseCheckpointName(text)) << text;
  }
}

TEST(CheckpointsToDelete, KeepsTheLastTheMilestonesAndTheNewestAttempt) {
  const std::vector<CheckpointName> all = {{100, 1}, {200, 1}, {250, 1}, {250, 2}, {300, 2}, {350, 2}, {400, 1}};
  // 400 of attempt 1 is newer than what is safe: it is not ours to judge.
  EXPECT_THAT(CheckpointsToDelete(all, {350, 2}, 2, 200),
              ElementsAre(CheckpointName{250, 2}, CheckpointName{250, 1}, CheckpointName{100, 1}));
  EXPECT_THAT(CheckpointsToDelete({{1, 1}}, {1, 1}, 0, 0), IsEmpty());
}

TEST(AdapterConfig, ATiedHeadIsStoredUnderBothNames) {
  const at::Tensor value = at::zeros({2, 2});
  const std::vector<Trainable> trainables = {
      {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", value, value, true},
      {"base_model.model.model.layers.0.input_layernorm.weight", value, value, false},
      {"base_model.model.model.norm.weight", value, value, false},
      {"base_model.model.model.embed_tokens.weight", value, value, false}};
  EXPECT_THAT(ModulesToSave(trainables, false), ElementsAre("embed_tokens", "input_layernorm", "norm"));
  EXPECT_THAT(ModulesToSave(trainables, true), ElementsAre("embed_tokens", "input_layernorm", "lm_head", "norm"));
  EXPECT_EQ(SavedTensors(trainables, false).size(), 4u);
  EXPECT_EQ(SavedTensors(trainables, true).back().first, "base_model.model.lm_head.weight");
  EXPECT_TRUE(AdapterConfigDocument({}).at("modules_to_save").is_null());
}

}  // namespace
}  // namespace longspan::trainer
