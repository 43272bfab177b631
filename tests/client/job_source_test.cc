// Job files as users write them: YAML and JSON, lines in messages, paths, --set.
#include "client/job_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/command.h"
#include "client/yaml_document.h"
#include "proto/jobfile/job_file.h"
#include "tests/temporary_folder.h"
#include "tests/test_paths.h"

namespace longspan::client {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class JobSourceTest : public ::testing::Test {
 protected:
  jobfile::JobSpec Read(const std::string& file, const std::string& text,
                        const std::vector<std::string>& changes = {}) const {
    std::ofstream(folder_ / file) << text;
    return ReadJobFile(folder_ / file, changes, environment_);
  }
  std::string ErrorOf(const std::string& file, const std::string& text,
                      const std::vector<std::string>& changes = {}) const {
    try {
      Read(file, text, changes);
    } catch (const CommandError& error) {
      EXPECT_EQ(error.exit_code(), kExitUsage);
      return error.what();
    }
    return "no error";
  }

  const testing::TemporaryFolder temporary_folder_;
  const fs::path folder_ = temporary_folder_.path();
  Environment environment_;
};

constexpr char kHead[] = "name: a\nmodel: {path: ../m}\ndata: {sources: [x, /y]}\ncontext_length: 64\n";

TEST_F(JobSourceTest, PathsAreTakenFromTheFolderOfTheFile) {
  const jobfile::JobSpec spec = Read("job.yaml", kHead);
  EXPECT_EQ(spec.model.path, folder_.parent_path() / "m");
  EXPECT_EQ(spec.data.sources, (std::vector<std::string>{folder_ / "x", "/y"}));
  EXPECT_EQ(Read("job.yaml", kHead, {"model.path=m2"}).model.path, fs::current_path() / "m2");
}

TEST_F(JobSourceTest, ScalarsAreReadByTheCoreSchema) {
  const jobfile::JobSpec spec = Read("job.yaml", std::string(kHead) + "training: {learning_rate: 1e-4, steps: 1_0}\n",
                                     {"training.steps=12", "labels.a.b=yes", "method.targets=[q_proj, v_proj]"});
  EXPECT_EQ(spec.training.learning_rate, 1e-4);
  EXPECT_EQ(spec.training.steps, 12);
  EXPECT_EQ(spec.labels.at("a.b"), "yes");
  EXPECT_EQ(spec.method.targets.size(), 2u);
  EXPECT_THAT(ErrorOf("job.yaml", std::string(kHead) + "training:\n  steps: \"5\"\n"),
              HasSubstr("line 6: training.steps: is \"5\"; must be a whole number"));
}

TEST_F(JobSourceTest, MistakesHaveLinesInBothLanguages) {
  EXPECT_THAT(ErrorOf("job.yaml", std::string(kHead) + "\n# a remark\ntraining:\n  setps: 3\n"),
              HasSubstr("line 8: training.setps: unknown key; did you mean training.steps?"));
  EXPECT_THAT(ErrorOf("job.json", "{\n\"name\": \"a\",\n\"contxt_length\": 5\n}"),
              HasSubstr("line 3: contxt_length: unknown key; did you mean context_length?"));
  EXPECT_THAT(ErrorOf("job.yaml", std::string(kHead) + "name: b\n"),
              HasSubstr("line 5: name: is written twice, first in line 1"));
  EXPECT_THAT(ErrorOf("job.json", "{\"name\": \"a\",\n\"name\": \"b\"}"),
              HasSubstr("line 2: name: is written twice, first in line 1"));
  EXPECT_THAT(ErrorOf("job.yaml", "name: [a\nmodel: x"), AllOf(HasSubstr("line "), HasSubstr("is not YAML")));
  EXPECT_THAT(ErrorOf("job.json", "{\n\"name\": }"), HasSubstr("line 2: the job file is not JSON"));
  EXPECT_THAT(ErrorOf("job.yaml", "just text"), HasSubstr("a job file is a map of keys"));
  EXPECT_THAT(ErrorOf("job.yaml", ""), HasSubstr("a job file is a map of keys"));
  EXPECT_THAT(ErrorOf("job.yaml", "name: a\n---\nname: b\n"), HasSubstr("second document"));
  // yaml-cpp makes documents without end out of these.
  EXPECT_THAT(ErrorOf("job.yaml", ", name: a\n"), HasSubstr("line 1"));
  EXPECT_THAT(ErrorOf("job.yaml", kHead, {"training.steps"}), HasSubstr("must be key=value"));
}

TEST_F(JobSourceTest, AFileThatGrowsThroughAliasesIsRefused) {
  std::string text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c < 'j'; ++c) {
    text += std::string(1, c) + ": &" + c + " [";
    for (int i = 0; i < 10; ++i) text += std::string(i > 0 ? ", " : "") + "*" + static_cast<char>(c - 1);
    text += "]\n";
  }
  EXPECT_THAT(ErrorOf("job.yaml", text), HasSubstr("beyond any use"));
  EXPECT_THAT(ErrorOf("job.yaml", "labels: " + std::string(100'000, '[')), HasSubstr("mistake"));
}

TEST_F(JobSourceTest, TheReferenceIsAValidJobFileThatSaysTheDefaults) {
  std::stringstream text;
  text << std::ifstream(testing::SourceDir() / "deploy/examples/reference.yaml").rdbuf();
  jobfile::JobSpec reference = Read("reference.yaml", text.str());
  ASSERT_TRUE(reference.rope);
  EXPECT_FALSE(reference.rope->factor);
  reference.rope.reset();  // an empty section says what no section says
  const jobfile::JobSpec smallest =
      Read("reference.yaml",
           "name: extend-my-model\nmodel: {path: models/llama}\ndata: {sources: [corpus.txt]}\ncontext_length: 8192\n");
  EXPECT_EQ(jobfile::ToDocument(reference).dump(2), jobfile::ToDocument(smallest).dump(2));
}

}  // namespace
}  // namespace longspan::client
