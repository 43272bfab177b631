// The files of a corpus: which there are, what they hold, and reading their bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace longspan::trainer {

// .txt is one document, .jsonl has one JSON value a line, .json has an array of them, or several one after another.
enum class CorpusFileKind { kText, kJsonLines, kJson };
enum class CorpusPacking { kNone, kGzip, kZstd };

struct CorpusFile {
  std::filesystem::path path;
  CorpusFileKind kind = CorpusFileKind::kText;
  CorpusPacking packing = CorpusPacking::kNone;
  int64_t size_bytes = 0;   // on disk
  int64_t modified_ns = 0;  // some fixed clock; only compared with itself
};

// Files in the order of the sources, those of a folder (with its subfolders, without hidden names) by path. A file that
// is named must be one we read; a folder may hold others, which `ignored` is told about. Throws UserError.
std::vector<CorpusFile> ListCorpusFiles(const std::vector<std::filesystem::path>& sources,
                                        const std::function<void(const std::filesystem::path&)>& ignored);

// Throws UserError when the file is not as it was listed.
void CheckUnchanged(const CorpusFile& file);

// Reads a file from its start, unpacking .gz and .zst. Throws UserError (missing, unreadable, damaged, packed otherwise
// than its name says).
class CorpusReader {
 public:
  explicit CorpusReader(const CorpusFile& file);
  ~CorpusReader();

  // Appends up to `bytes` unpacked bytes; false at the end of the file.
  bool AppendTo(std::string& buffer, size_t bytes);
  int64_t position() const;  // bytes read on disk

 private:
  class Source;
  class GzipSource;  // of plain files too: zlib passes them through
  class ZstdSource;
  std::unique_ptr<Source> source_;
};

}  // namespace longspan::trainer
