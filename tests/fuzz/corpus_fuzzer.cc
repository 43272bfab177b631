// A .jsonl, .json or .txt file of the corpus, packed or not: documents of known tokens, or UserError.
#include "tests/fuzz/memory_file.h"
#include "worker/trainer/data/chunk_encoder.h"
#include "worker/trainer/data/documents.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/errors.h"

namespace {

using namespace longspan::trainer;  // NOLINT: a fuzzer is one function

// The special tokens of all templates.
constexpr const char* kSpecialTokens[] = {
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
constexpr char kModel[] = R"("normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
  "use_regex": false}, "post_processor": null, "model": {"type": "BPE", "merges": [], "vocab": {)";

// Every byte is a token.
std::string ByteTokenizer() {
  std::string added;
  int id = 256;
  for (const char* token : kSpecialTokens) {
    added += (added.empty() ? "" : ",") + (R"({"id": )" + std::to_string(id++)) + R"(, "content": ")" + token +
             R"(", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})";
  }
  std::string vocabulary;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    // The letters that byte-level BPE writes for bytes: themselves where they can be seen, else from U+0100 on.
    const bool visible = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    char escaped[16];
    std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(visible ? byte : next++));
    vocabulary += (byte > 0 ? ",\"" : "\"") + std::string(escaped) + "\":" + std::to_string(byte);
  }
  return R"({"added_tokens": [)" + added + "]," + kModel + vocabulary + "}}}";
}

void Read(const CorpusFile& file, longspan::jobfile::DataFormat format, const Tokenizer& tokenizer,
          const RecordEncoder* records, MergeCache& cache) {
  const std::vector<CorpusFile> files = {file};
  try {
    const ChunkEncoder encoder(files, format, "text", tokenizer, records);
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

std::vector<RecordEncoder> EncodersOfAllTemplates(const Tokenizer& tokenizer) {
  using longspan::jobfile::ChatTemplate;
  std::vector<RecordEncoder> encoders;
  for (const ChatTemplate kind : {ChatTemplate::kLlama2, ChatTemplate::kAlpaca, ChatTemplate::kChatml,
                                  ChatTemplate::kLlama3, ChatTemplate::kMistral}) {
    const RecordTemplate::Options options{kind, "", false, kind != ChatTemplate::kMistral};
    encoders.emplace_back(tokenizer, RecordTemplate(options, {"<s>", "</s>"}), 64);
  }
  return encoders;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using longspan::jobfile::DataFormat;
  static const longspan::fuzz::MemoryFolder folder;
  static const Tokenizer tokenizer = [] {
    folder.Write("tokenizer.json", ByteTokenizer());
    return Tokenizer::Load(folder.path());
  }();
  static const std::vector<RecordEncoder> encoders = EncodersOfAllTemplates(tokenizer);
  // The first byte chooses, the others are the file.
  if (size == 0) return 0;
  constexpr CorpusFileKind kKinds[] = {CorpusFileKind::kJsonLines, CorpusFileKind::kJson, CorpusFileKind::kText};
  constexpr CorpusPacking kPackings[] = {CorpusPacking::kNone, CorpusPacking::kGzip, CorpusPacking::kZstd};
  const RecordEncoder& records = encoders[data[0] % encoders.size()];
  const longspan::fuzz::MemoryFile memory({reinterpret_cast<const char*>(data) + 1, size - 1});
  CorpusFile file;
  file.path = memory.path();
  file.kind = kKinds[data[0] / 5 % 3];
  file.packing = kPackings[data[0] / 15 % 3];
  file.size_bytes = static_cast<int64_t>(size) - 1;
  static MergeCache cache;  // large
  Read(file, DataFormat::kText, tokenizer, nullptr, cache);
  Read(file, DataFormat::kInstruction, tokenizer, &records, cache);
  Read(file, DataFormat::kChat, tokenizer, &records, cache);
  return 0;
}
