// A job that trains in a fraction of a second: a random model of some thousand parameters on made-up words.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "tests/test_paths.h"

namespace longspan::testing {

class TinyJob {
 public:
  TinyJob() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tiny_job.XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
    WriteModel(/*initializer_range=*/0.2);
    WriteCorpus();
    spec = {{"name", "tiny"},
            {"model", {{"path", (folder_ / "model").string()}, {"init", "random"}}},
            {"data", {{"sources", {(folder_ / "corpus.txt").string()}}, {"holdout_fraction", 0.1}}},
            {"context_length", 32},
            {"method", {{"kind", "longlora"}, {"rank", 2}, {"dropout", 0.1}}},
            {"training", {{"steps", 6}, {"global_batch", 3}, {"learning_rate", 0.01}, {"warmup_steps", 2}}},
            {"evaluation", {{"lengths", {16, 32}}}},
            {"checkpoint", {{"every_steps", 2}, {"keep_last", 9}}}};
  }
  ~TinyJob() { std::filesystem::remove_all(folder_); }
  TinyJob(const TinyJob&) = delete;
  TinyJob& operator=(const TinyJob&) = delete;

  const std::filesystem::path& folder() const { return folder_; }

  // Writes `spec` with `changes` laid over it and returns the file.
  std::string SpecFile(const nlohmann::json& changes = nlohmann::json::object()) {
    nlohmann::json changed = spec;
    if (changes.is_object()) changed.merge_patch(changes);
    const auto path = folder_ / ("spec-" + std::to_string(++specs_) + ".json");
    std::ofstream(path) << changed.dump(2);
    return path.string();
  }

  // The model's random weights are drawn with this spread.
  void WriteModel(double initializer_range) {
    const auto model = folder_ / "model";
    std::filesystem::create_directories(model);
    const auto tokenizer = SourceDir() / "deploy/examples/tiny-base-init";
    for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
      std::filesystem::copy_file(tokenizer / file, model / file, std::filesystem::copy_options::overwrite_existing);
    }
    const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                   {"model_type", "llama"},
                                   {"hidden_size", 16},
                                   {"intermediate_size", 24},
                                   {"num_hidden_layers", 2},
                                   {"num_attention_heads", 2},
                                   {"num_key_value_heads", 1},
                                   {"vocab_size", 2048},
                                   {"max_position_embeddings", 16},
                                   {"rms_norm_eps", 1e-5},
                                   {"rope_theta", 10000.0},
                                   {"initializer_range", initializer_range},
                                   {"tie_word_embeddings", true},
                                   {"hidden_act", "silu"},
                                   {"bos_token_id", 0},
                                   {"eos_token_id", 1},
                                   {"torch_dtype", "float32"}};
    std::ofstream(model / "config.json") << config.dump(2);
  }

  nlohmann::json spec;

 private:
  void WriteCorpus() {
    std::mt19937 random(7);
    std::ofstream corpus(folder_ / "corpus.txt");
    const char* const words[] = {"the", "king", "said", "unto", "water", "light", "and", "of", "seven", "stone"};
    for (int word = 0; word < 6000; ++word) corpus << words[random() % 10] << (word % 15 == 14 ? ".\n" : " ");
  }

  std::filesystem::path folder_;
  int specs_ = 0;
};

}  // namespace longspan::testing
