// longspan-tokenize MODEL_FOLDER [plain|special|decode|decode-skip|bench FILE]: for comparison with the `tokenizers`
// and `sentencepiece` packages (tests/parity/test_tokenizer*.py).
//
// `plain` and `special` read a text a line, as a JSON string or, where it is not UTF-8, a list of bytes, and write its
// ids as a JSON list a line, without or with what the post-processor adds. `decode` and `decode-skip` read lists of ids
// and write JSON strings, with or without special tokens. `bench` encodes a text file some times on one thread and
// writes the best speed, by processor time.
#include <time.h>

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
using nlohmann::json;

constexpr int kBenchRounds = 3;

// Of this thread: other work on the machine does not count.
double ProcessorSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

int Bench(const Tokenizer& tokenizer, const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  double best_seconds = 0;
  std::vector<TokenId> ids;
  for (int round = 0; round < kBenchRounds; ++round) {
    MergeCache cache;
    ids.clear();
    const double start = ProcessorSeconds();
    tokenizer.EncodeTo(text, cache, ids);
    const double seconds = ProcessorSeconds() - start;
    if (round == 0 || seconds < best_seconds) best_seconds = seconds;
  }
  std::cout << json{{"tokens", ids.size()},
                    {"bytes", text.size()},
                    {"megabytes_per_second", static_cast<double>(text.size()) / 1e6 / best_seconds}}
                   .dump()
            << '\n';
  return 0;
}

std::string TextOf(const json& line) {
  if (line.is_string()) return line.get<std::string>();
  std::string bytes;
  for (const json& byte : line) bytes += static_cast<char>(byte.get<uint8_t>());
  return bytes;
}

// In two parts where the tokenizer allows it, so that this is tested wherever whole texts are.
std::vector<TokenId> EncodeInParts(const Tokenizer& tokenizer, const std::string& text, MergeCache& cache) {
  std::vector<TokenId> ids;
  size_t cut = std::string::npos;
  for (size_t at = 1; at < text.size() && tokenizer.CanCutBeforeNewline(); ++at) {
    const char before = text[at - 1];
    const bool letter = (before >= 'a' && before <= 'z') || (before >= 'A' && before <= 'Z');
    if (letter && text[at] == '\n') cut = at;
  }
  tokenizer.EncodeTo(text.substr(0, cut), cache, ids);
  if (cut != std::string::npos) tokenizer.ContinueTo(text.substr(cut), cache, ids);
  return ids;
}

json Encode(const Tokenizer& tokenizer, const std::string& text, bool special, MergeCache& cache) {
  std::vector<TokenId> ids;
  if (special) ids = tokenizer.prefix();
  tokenizer.EncodeTo(text, cache, ids);
  if (special) ids.insert(ids.end(), tokenizer.suffix().begin(), tokenizer.suffix().end());
  if (!special && EncodeInParts(tokenizer, text, cache) != ids) return "the parts of the text give other ids";
  return ids;
}

int Run(int argc, char** argv) {
  const Tokenizer tokenizer = Tokenizer::Load(argv[1]);
  const std::string mode = argc > 2 ? argv[2] : "plain";
  if (mode == "bench" && argc > 3) return Bench(tokenizer, argv[3]);
  MergeCache cache;
  for (std::string line; std::getline(std::cin, line);) {
    const json input = json::parse(line);
    const json output = mode.starts_with("decode")
                            ? json(tokenizer.Decode(input.get<std::vector<int64_t>>(), mode == "decode-skip"))
                            : Encode(tokenizer, TextOf(input), mode == "special", cache);
    std::cout << output.dump() << '\n';
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: longspan-tokenize MODEL_FOLDER [plain|special|decode|decode-skip|bench FILE]\n";
    return 2;
  }
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 10;
  }
}
