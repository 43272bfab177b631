// tokenizer.json: understood, or refused with UserError. What is understood encodes any text to ids of its vocabulary.
#include "tests/fuzz/json_fuzzer.h"
#include "tests/fuzz/memory_file.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/errors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longspan::trainer;  // NOLINT: a fuzzer is one function
  static const longspan::fuzz::MemoryFolder folder;
  folder.Write("tokenizer.json", {reinterpret_cast<const char*>(data), size});
  try {
    const Tokenizer tokenizer = Tokenizer::Load(folder.path());
    for (const char* text :
         {"", "Hello, world  \n\n\t 12345 it's", "\xC3\xA9\xE2\x80\x8D\xF0\x9F\x98\x80 <s>ab</s>\xE2\x96\x81x"}) {
      for (const TokenId id : tokenizer.Encode(text, true)) {
        if (static_cast<int64_t>(id) >= tokenizer.vocab_size()) std::abort();
      }
    }
  } catch (const TrainerError&) {
  }
  return 0;
}
