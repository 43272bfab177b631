// tokenizer.model: understood, or refused with UserError. What is understood keeps tokenizer_check.h.
#include <cstring>

#include "tests/fuzz/memory_file.h"
#include "tests/fuzz/tokenizer_check.h"
#include "tests/fuzz/wire_mutator.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t size_max);

// Half of the mutations change one field of the message and keep the lengths around it right.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t size_max, unsigned seed) {
  std::string mutated;
  if (seed % 2 == 0) {
    mutated = longspan::fuzz::MutateWireText({reinterpret_cast<const char*>(data), size}, size_max, seed / 2,
                                             LLVMFuzzerMutate);
  }
  if (mutated.empty()) return LLVMFuzzerMutate(data, size, size_max);
  std::memcpy(data, mutated.data(), mutated.size());
  return mutated.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longspan;  // NOLINT: a fuzzer is one function
  static const fuzz::MemoryFolder folder;
  static const bool once = [] {
    folder.Write("added_tokens.json", R"({"[INST]": 70000})");
    return true;
  }();
  (void)once;
  folder.Write("tokenizer.model", {reinterpret_cast<const char*>(data), size});
  try {
    fuzz::CheckTokenizer(trainer::Tokenizer::Load(folder.path()));
  } catch (const trainer::TrainerError&) {
  }
  return 0;
}
