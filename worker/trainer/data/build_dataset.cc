#include "worker/trainer/data/build_dataset.h"

#include <algorithm>

#include "worker/trainer/data/documents.h"
#include "worker/trainer/data/ordered_workers.h"
#include "worker/trainer/data/record_example.h"
#include "worker/trainer/data/sft_records.h"
#include "worker/trainer/data/token_writer.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

struct Enough {};  // thrown to stop reading

// The first record of a file; a chunk without one when the file has none.
Chunk FirstChunk(const CorpusFile& file) {
  Chunk first;
  try {
    ReadChunks(file, 0, {.may_cut = true}, [&first](Chunk chunk) {
      first = std::move(chunk);
      throw Enough();
    });
  } catch (const Enough&) {
  }
  return first;
}

}  // namespace

jobfile::DataFormat FormatOfCorpus(const std::vector<CorpusFile>& files, const std::string& text_field) {
  for (const CorpusFile& file : files) {
    if (file.kind == CorpusFileKind::kText) return jobfile::DataFormat::kText;
    const Chunk chunk = FirstChunk(file);
    if (chunk.records.empty()) continue;
    const RawRecord& raw = chunk.records.front();
    const std::string_view bytes = std::string_view(chunk.bytes).substr(raw.begin, raw.end - raw.begin);
    if (FindInvalidUtf8(bytes)) return jobfile::DataFormat::kText;  // whoever reads it says where
    try {
      return FormatOfRecord(ParseRecord(bytes), text_field).value_or(jobfile::DataFormat::kText);
    } catch (const RecordError& error) {
      FailLine(file, raw.line, error.what());
    }
  }
  return jobfile::DataFormat::kText;
}

BuiltDataset BuildDataset(const std::vector<CorpusFile>& files, const BuildOptions& options, const Tokenizer& tokenizer,
                          const RecordEncoder* records, const std::filesystem::path& folder,
                          const std::function<void(size_t file, int64_t bytes_on_disk)>& position) {
  BuiltDataset built;
  TokenWriter writer(folder, tokenizer.vocab_size() <= 65536 ? 2 : 4, records != nullptr);
  const ChunkEncoder encoder(files, options.format, options.text_field, tokenizer, records);
  std::vector<MergeCache> caches(static_cast<size_t>(std::max<int64_t>(1, options.threads)));

  const auto encode = [&](Chunk& chunk, size_t thread) { return encoder.Encode(chunk, caches[thread]); };
  const auto write = [&](EncodedChunk chunk) {
    writer.Append(chunk.ids, chunk.scored, chunk.document_ends);
    built.counts.Add(chunk.counts);
    if (chunk.first_kept && built.example.is_null()) {
      built.example = ExampleOf(records->record_template().Render(*chunk.first_kept));
    }
    position(chunk.file, chunk.position);
  };
  OrderedWorkers<Chunk, EncodedChunk> workers({.threads = options.threads}, encode, write);
  const ChunkOptions chunk_options{tokenizer.CanCutBeforeNewline()};
  try {
    for (size_t number = 0; number < files.size(); ++number) {
      ReadChunks(files[number], number, chunk_options, [&](Chunk chunk) {
        const auto bytes = static_cast<int64_t>(chunk.bytes.size());
        workers.Put(std::move(chunk), bytes);
      });
      CheckUnchanged(files[number]);
    }
  } catch (const UserError&) {
    workers.Finish();  // a mistake further up in the corpus, still on its way, is the one to tell
    throw;
  }
  workers.Finish();
  writer.Finish();
  built.documents = writer.documents();
  built.tokens = writer.tokens();
  built.largest_id = writer.largest_id();
  return built;
}

}  // namespace longspan::trainer
