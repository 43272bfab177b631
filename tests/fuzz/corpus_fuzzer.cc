// A .jsonl or .json file of the corpus: documents of known tokens, or UserError.
#include "tests/fuzz/memory_file.h"
#include "worker/trainer/data/chunk_encoder.h"
#include "worker/trainer/data/documents.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/errors.h"

namespace {

using namespace longspan::trainer;  // NOLINT: a fuzzer is one function

// Every byte is a token.
constexpr char kTokenizer[] = R"({"added_tokens": [{"id": 256, "content": "</s>",
  "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}], "normalizer": null, "pre_tokenizer": {"type": "ByteLevel",
  "add_prefix_space": false, "use_regex": false}, "post_processor": null, "model": {"type": "BPE", "merges": [], "vocab": {)";

std::string ByteTokenizer() {
  std::string vocabulary;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    // The letters that byte-level BPE writes for bytes: themselves where they can be seen, else from U+0100 on.
    const bool visible = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    char escaped[16];
    std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(visible ? byte : next++));
    vocabulary += (byte > 0 ? ",\"" : "\"") + std::string(escaped) + "\":" + std::to_string(byte);
  }
  return kTokenizer + vocabulary + "}}}";
}

void Read(const CorpusFile& file, longspan::jobfile::DataFormat format, const Tokenizer& tokenizer,
          const RecordEncoder* records) {
  const std::vector<CorpusFile> files = {file};
  const ChunkEncoder encoder(files, format, "text", tokenizer, records);
  MergeCache cache;
  try {
    ReadChunks(file, 0, {}, [&](const Chunk& chunk) {
      const EncodedChunk encoded = encoder.Encode(chunk, cache);
      for (const TokenId id : encoded.ids) {
        if (static_cast<int64_t>(id) >= tokenizer.vocab_size()) std::abort();
      }
      if (records != nullptr && encoded.scored.size() != encoded.ids.size()) std::abort();
      for (const size_t end : encoded.document_ends) {
        if (end > encoded.ids.size()) std::abort();
      }
    });
  } catch (const TrainerError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using longspan::jobfile::DataFormat;
  static const longspan::fuzz::MemoryFolder folder;
  static const Tokenizer tokenizer = [] {
    folder.Write("tokenizer.json", ByteTokenizer());
    return Tokenizer::Load(folder.path());
  }();
  static const RecordEncoder records(
      tokenizer, RecordTemplate({longspan::jobfile::ChatTemplate::kAlpaca, "", false, true}, {"", "</s>"}), 64);
  const longspan::fuzz::MemoryFile memory({reinterpret_cast<const char*>(data), size});
  CorpusFile file;
  file.path = memory.path();
  file.kind = size % 2 == 0 ? CorpusFileKind::kJsonLines : CorpusFileKind::kJson;
  file.size_bytes = static_cast<int64_t>(size);
  Read(file, DataFormat::kText, tokenizer, nullptr);
  Read(file, DataFormat::kInstruction, tokenizer, &records);
  Read(file, DataFormat::kChat, tokenizer, &records);
  return 0;
}
