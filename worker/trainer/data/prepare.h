// The prepare phase: turns text into tokens once, before any process group exists.
//
//   sources (.txt, .jsonl, .json, each also .gz or .zst;        <datasets_root>/<key>/tokens.bin     uint16 or uint32
//   folders of them) + tokenizer + options                  ──►                     documents.bin  uint64 offsets
//                                                                                   scored.bin     records: 1 for an id
//                                                                                                  whose label counts
//                                                                                   dataset.json   counts, hashes
//                                                              <work>/dataset.json  which of them, and the split
//
// The key is a hash of the content of the sources, the tokenizer and the options that decide ids, so equal jobs share
// the folder, whatever their held-out fraction or, for text, context length. It is published by rename: it exists whole
// or not at all, and when two jobs prepare the same data at once, one of them wins and both use it. Calling Prepare
// again finds the folder and is quick.
//
// What a text or a record becomes is said in chunk_encoder.h, chat_template.h and record_encoder.h. Documents lie one
// after another in the order of the sources (in a folder: by path). Memory is bounded by some chunks on their way and
// the longest record (documents.h), not by the corpus. The bytes do not depend on the number of threads.
//
// Throws UserError for everything that is wrong with the corpus, the tokenizer or the options (with file, line and
// byte), StorageError when the disk fails. An exception from a callback passes through; nothing is published then.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"

namespace longspan::trainer {

struct PrepareOptions {
  std::vector<std::filesystem::path> sources;
  std::optional<jobfile::DataFormat> format;  // absent: by the first record
  std::string text_field = "text";
  std::optional<jobfile::ChatTemplate> chat_template;  // of records; absent: the model's own
  bool packing = false;                                // documents keep their borders, several in a row
  bool bucketing = false;                              // rows of a batch are alike; refused for joined documents
  double holdout_fraction = 0.02;                      // [0, 0.5]; 0: nothing is held out
  int64_t context_length = 0;
  int64_t longest_evaluation_length = 0;  // the held-out part is made at least this long where the corpus allows it
  std::filesystem::path model_folder;     // tokenizer.json or tokenizer.model lies here
  std::filesystem::path datasets_root;
  std::filesystem::path work;  // gets dataset.json; created when missing
  int64_t threads = 1;
};

// What a job file says, with its paths as they are. The longest evaluation length is the longest of context_length and
// evaluation.lengths.
PrepareOptions PrepareOptionsOf(const jobfile::JobSpec& spec, const std::filesystem::path& work,
                                const std::filesystem::path& datasets_root);

// `<storage>/datasets` when work is `<storage>/jobs/<job>`, else `<work>/datasets`.
std::filesystem::path DefaultDatasetsRoot(const std::filesystem::path& work);

struct PrepareCallbacks {
  // Bytes of the sources (as they lie on disk) read so far, some times per second at most per MiB. Called once at the
  // end with done == total, also when the data was there already.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> progress;
  std::function<void(const std::string& message)> warning;
};

struct PreparedDataset {
  std::filesystem::path folder;  // <datasets_root>/<key>
  std::string key;
  bool reused = false;  // it was there already
  jobfile::DataFormat format = jobfile::DataFormat::kText;
  std::string example;  // lines for people with one rendered record, prompt and answer marked; empty for text
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t training_tokens = 0;
  int64_t heldout_tokens = 0;
  int64_t training_sequences = 0;  // rows per epoch
  int64_t dropped_tokens = 0;      // in no row: of joined documents, the training tail shorter than a context
  int64_t padding_tokens = 0;      // of packed rows, with nothing to put there
};

PreparedDataset Prepare(const PrepareOptions& options, const PrepareCallbacks& callbacks = {});

}  // namespace longspan::trainer
