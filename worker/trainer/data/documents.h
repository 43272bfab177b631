// Cuts a corpus file into chunks that can be tokenised apart: parts of a text, or batches of JSON records.
//
// Reading is one thread's work and cheap; what is in a chunk is looked at by whoever gets it (chunk_encoder.h). A chunk
// has about kChunkBytes, unless one record or one uncuttable text is larger. Memory is bounded by that: a text that may
// be cut streams through, a record has at most kRecordBytesMax.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "worker/trainer/data/corpus_files.h"

namespace longspan::trainer {

inline constexpr size_t kChunkBytes = 256 << 10;
inline constexpr int64_t kRecordBytesMax = int64_t{256} << 20;

struct RawRecord {
  size_t begin = 0;  // of the chunk's bytes
  size_t end = 0;
  int64_t line = 0;    // of the file, from 1, where it begins
  int64_t offset = 0;  // of the unpacked file
};

struct Chunk {
  size_t file = 0;  // its number among the corpus files
  std::string bytes;
  // Records (.jsonl, .json): not looked at, any bytes.
  std::vector<RawRecord> records;
  // A text (.txt): UTF-8; one or more chunks of a document, the last of which may be empty.
  bool is_text = false;
  bool begins_document = false;
  bool ends_document = false;
  bool empty_document = false;  // no chunk of it has any bytes
  int64_t position = 0;         // bytes of the file on disk that were read by now
};

struct ChunkOptions {
  // Whether a text may be cut before a '\n' that stands behind an ASCII letter.
  bool may_cut = false;
};

// Throws UserError with file, line and byte for a text that is not UTF-8, an array that is not closed or has something
// between its records, a record that is too long. A byte order mark at the start of a file is dropped; blank lines are
// skipped.
void ReadChunks(const CorpusFile& file, size_t number, const ChunkOptions& options,
                const std::function<void(Chunk chunk)>& sink);

[[noreturn]] void FailUtf8(const CorpusFile& file, int64_t line, int64_t byte, char value);
[[noreturn]] void FailLine(const CorpusFile& file, int64_t line, const std::string& why);

}  // namespace longspan::trainer
