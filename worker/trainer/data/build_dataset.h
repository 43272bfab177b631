// The work of the prepare phase: reads every corpus file, tokenises on several threads, writes tokens.bin,
// documents.bin and scored.bin in the order of the sources. The bytes do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/data/chunk_encoder.h"
#include "worker/trainer/data/corpus_files.h"
#include "worker/trainer/data/record_encoder.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

struct BuildOptions {
  jobfile::DataFormat format = jobfile::DataFormat::kText;
  std::string text_field;
  int64_t threads = 1;
};

struct BuiltDataset {
  int64_t documents = 0;
  int64_t tokens = 0;
  TokenId largest_id = 0;
  CorpusCounts counts;
  nlohmann::json example;  // of records, as record_example.h makes it
};

// What the records are, from the first of them; a .txt file is text. Throws UserError when that is no JSON object.
jobfile::DataFormat FormatOfCorpus(const std::vector<CorpusFile>& files, const std::string& text_field);

// `records` is null for texts. `position` gets the number of a file and the bytes of it that were read. Throws
// UserError, StorageError, and whatever `position` throws.
BuiltDataset BuildDataset(const std::vector<CorpusFile>& files, const BuildOptions& options, const Tokenizer& tokenizer,
                          const RecordEncoder* records, const std::filesystem::path& folder,
                          const std::function<void(size_t file, int64_t bytes_on_disk)>& position);

}  // namespace longspan::trainer
