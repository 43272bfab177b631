// For inputs that are one JSON document: half of the mutations are of its values, the rest of its bytes.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "tests/fuzz/json_mutator.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t size_max);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t size_max, unsigned seed) {
  std::string mutated;
  if (seed % 2 == 0) {
    mutated = longspan::fuzz::MutateJsonText({reinterpret_cast<const char*>(data), size}, size_max, seed / 2);
  }
  if (mutated.empty()) return LLVMFuzzerMutate(data, size, size_max);
  std::memcpy(data, mutated.data(), mutated.size());
  return mutated.size();
}
