// Mutations of JSON documents for libFuzzer: what a person or a broken program does to a file, rather than flipped
// bits. A value gets another type, an extreme number, a copy of another value; keys go, come twice under another name
// or swap their values; arrays are shuffled and repeated; text is cut. Deterministic in the seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace longspan::fuzz {

class JsonMutator {
 public:
  explicit JsonMutator(unsigned seed) : random_(seed) {}

  // Changes one to four places.
  void Mutate(nlohmann::json& document);

 private:
  size_t Below(size_t count) { return random_() % count; }
  void Collect(nlohmann::json& value, int depth);
  void MutateOne(nlohmann::json& value);
  nlohmann::json Strange();

  std::minstd_rand random_;
  std::vector<nlohmann::json*> places_;
};

// Mutates `text` as JSON, or gives an empty string when it is none or the result has more than `bytes_max` bytes.
std::string MutateJsonText(const std::string& text, size_t bytes_max, unsigned seed);

}  // namespace longspan::fuzz
