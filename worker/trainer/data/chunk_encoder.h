// From a chunk of a corpus file to token ids, with everything that is counted on the way.
//
// A text document becomes: what the tokenizer's post-processor puts before a text (BOS), the text, what it puts behind,
// EOS. A record becomes what record_encoder.h says; dropped ones leave a count and their place.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/data/documents.h"
#include "worker/trainer/data/record_encoder.h"
#include "worker/trainer/data/sft_records.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

struct RecordPlace {
  size_t file = 0;  // its number among the corpus files
  int64_t line = 0;
};

struct CorpusCounts {
  int64_t text_bytes = 0;       // of texts
  int64_t empty_documents = 0;  // texts without a character
  // Of instruction and chat records:
  int64_t records = 0;  // all
  int64_t dropped = 0;  // the prompt fills the context
  int64_t cut = 0;      // the end of an answer is cut off; kept
  int64_t scored_tokens = 0;
  int64_t special_in_text = 0;  // kept records in which a text spells a special token of the template
  std::optional<RecordPlace> first_dropped;

  void Add(const CorpusCounts& later);
};

struct EncodedChunk {
  std::vector<TokenId> ids;
  std::vector<uint8_t> scored;        // of records, one for each id; empty for texts
  std::vector<size_t> document_ends;  // positions in `ids`; what lies behind the last one goes on in the next chunk
  CorpusCounts counts;
  std::optional<SftRecord> first_kept;
  size_t file = 0;
  int64_t position = 0;  // as the chunk's
};

// Immutable and thread-safe; what it is given outlives it.
class ChunkEncoder {
 public:
  // `records` is null for texts.
  ChunkEncoder(const std::vector<CorpusFile>& files, jobfile::DataFormat format, std::string text_field,
               const Tokenizer& tokenizer, const RecordEncoder* records);

  // Throws UserError with file and line.
  EncodedChunk Encode(const Chunk& chunk, MergeCache& cache) const;

 private:
  void EncodeTextFile(const Chunk& chunk, MergeCache& cache, EncodedChunk& out) const;
  void EncodeLine(const Chunk& chunk, const RawRecord& raw, MergeCache& cache, EncodedChunk& out) const;
  void EncodeText(const std::string& text, MergeCache& cache, EncodedChunk& out) const;
  void EncodeRecord(SftRecord record, RecordPlace place, MergeCache& cache, EncodedChunk& out) const;
  void EndTextDocument(EncodedChunk& out) const;

  const std::vector<CorpusFile>& files_;
  jobfile::DataFormat format_;
  std::string text_field_;
  const Tokenizer& tokenizer_;
  const RecordEncoder* records_;
};

}  // namespace longspan::trainer
