// tokenizer.json: understood, or refused with UserError. What is understood keeps tokenizer_check.h.
#include "tests/fuzz/json_fuzzer.h"
#include "tests/fuzz/memory_file.h"
#include "tests/fuzz/tokenizer_check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longspan;  // NOLINT: a fuzzer is one function
  static const fuzz::MemoryFolder folder;
  folder.Write("tokenizer.json", {reinterpret_cast<const char*>(data), size});
  try {
    fuzz::CheckTokenizer(trainer::Tokenizer::Load(folder.path()));
  } catch (const trainer::TrainerError&) {
  }
  return 0;
}
