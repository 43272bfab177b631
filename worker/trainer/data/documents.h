// Cuts a corpus file into documents: a .txt file is one, each line of a .jsonl file is one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "worker/trainer/data/corpus_files.h"

namespace longspan::trainer {

struct DocumentOptions {
  std::string text_field;
  // Whether a text may be handed out in parts, cut before a '\n' that stands behind an ASCII letter.
  bool may_cut = false;
};

// Gets the documents of a file in order: any number of parts (valid UTF-8, none empty), then EndDocument. A document
// without text gets EndDocument alone.
class DocumentSink {
 public:
  virtual ~DocumentSink() = default;
  virtual void Text(std::string_view part) = 0;
  virtual void EndDocument() = 0;
  virtual void Position(int64_t bytes_on_disk) = 0;  // now and then: how much of the file was read
};

// Throws UserError with file, line and byte for text that is not UTF-8, a line that is no JSON object, a record without
// its text. A byte order mark at the start of a file is dropped; blank lines of a .jsonl file are skipped.
void ReadDocuments(const CorpusFile& file, const DocumentOptions& options, DocumentSink& sink);

}  // namespace longspan::trainer
