// longspan-tokenize MODEL_FOLDER [special|plain|bench FILE]: reads JSON strings from stdin, one a line, and writes
// their ids as a JSON list, one a line. For comparison with the `tokenizers` package (tests/parity/test_tokenizer.py);
// `bench` prints the speed on a text file.
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "worker/trainer/data/tokenizer.h"

namespace {

using longspan::trainer::MergeCache;
using longspan::trainer::TokenId;
using longspan::trainer::Tokenizer;

int Bench(const Tokenizer& tokenizer, const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  MergeCache cache;
  std::vector<TokenId> ids;
  const auto start = std::chrono::steady_clock::now();
  tokenizer.EncodeTo(text, cache, ids);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::cout << ids.size() << " tokens, " << static_cast<double>(text.size()) / 1e6 / seconds.count() << " MB/s\n";
  return 0;
}

int Run(int argc, char** argv) {
  const Tokenizer tokenizer = Tokenizer::Load(argv[1]);
  const std::string mode = argc > 2 ? argv[2] : "plain";
  if (mode == "bench" && argc > 3) return Bench(tokenizer, argv[3]);
  for (std::string line; std::getline(std::cin, line);) {
    const auto text = nlohmann::json::parse(line).get<std::string>();
    std::cout << nlohmann::json(tokenizer.Encode(text, mode == "special")).dump() << '\n';
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: longspan-tokenize MODEL_FOLDER [special|plain|bench FILE]\n";
    return 2;
  }
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 10;
  }
}
