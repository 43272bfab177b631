// A folder of its own for each test, with a small byte-level tokenizer and corpus files.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/test_paths.h"
#include "worker/trainer/data/prepare.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {

class CorpusTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "longspan-data-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  static std::filesystem::path TinyModel() { return longspan::testing::SourceDir() / "deploy/examples/tiny-base-init"; }

  std::filesystem::path Write(const std::string& name, const std::string& bytes) const {
    const std::filesystem::path path = root_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  std::filesystem::path WriteGzip(const std::string& name, const std::string& bytes) const {
    const std::filesystem::path path = root_ / name;
    gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
    gzclose(file);
    return path;
  }
  std::filesystem::path WriteZstd(const std::string& name, const std::string& bytes) const {
    std::string packed(ZSTD_compressBound(bytes.size()), '\0');
    packed.resize(ZSTD_compress(packed.data(), packed.size(), bytes.data(), bytes.size(), 3));
    return Write(name, packed);
  }
  static std::string Read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  }

  PrepareOptions Options(std::vector<std::filesystem::path> sources, const std::string& job = "job-1") const {
    PrepareOptions options;
    options.sources = std::move(sources);
    options.holdout_fraction = 0;
    options.context_length = 8;
    options.longest_evaluation_length = 8;
    options.model_folder = TinyModel();
    options.work = root_ / "jobs" / job;
    options.datasets_root = DefaultDatasetsRoot(options.work);
    return options;
  }
  // What Prepare says when it refuses.
  static std::string Refusal(const PrepareOptions& options, ExitCode exit_code = ExitCode::kUserData) {
    try {
      Prepare(options);
    } catch (const TrainerError& error) {
      EXPECT_EQ(error.exit_code(), exit_code);
      return error.what();
    }
    ADD_FAILURE() << "nothing was refused";
    return "";
  }

  std::filesystem::path root_;
};

}  // namespace longspan::trainer
