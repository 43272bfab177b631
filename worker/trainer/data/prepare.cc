#include "worker/trainer/data/prepare.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "worker/storage/storage.h"
#include "worker/trainer/data/corpus_files.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/data/documents.h"
#include "worker/trainer/data/mapped_file.h"
#include "worker/trainer/data/source_hashes.h"
#include "worker/trainer/data/token_writer.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kFormatVersion = 1;  // of the prepared folder, and a part of its key
constexpr size_t kKeyLetters = 32;

void Warn(const PrepareCallbacks& callbacks, const std::string& message) {
  if (callbacks.warning) callbacks.warning(message);
}

void RefuseUnsupported(const PrepareOptions& options) {
  if (options.packing)
    throw SpecError("data.packing: true is not supported yet; set it to false (plain concatenation)");
  if (options.format == jobfile::DataFormat::kInstruction) {
    throw SpecError("data.format: instruction is not supported yet; text is");
  }
  if (options.format == jobfile::DataFormat::kChat) throw SpecError("data.format: chat is not supported yet; text is");
  if (options.sources.empty()) throw SpecError("data.sources: it is empty; name the files or folders of the corpus");
}

std::vector<CorpusFile> ListFiles(const PrepareOptions& options, const PrepareCallbacks& callbacks) {
  int64_t ignored = 0;
  std::string example;
  const auto files = ListCorpusFiles(options.sources, [&](const fs::path& path) {
    if (ignored++ == 0) example = path.string();
  });
  if (ignored > 0) {
    Warn(callbacks,
         fmt::format(
             "{} files in the folders of data.sources are not read, such as {}: only .txt, .jsonl and these as .gz are",
             ignored, example));
  }
  return files;
}

// Everything that decides the prepared bytes.
json Recipe(const PrepareOptions& options, const Tokenizer& tokenizer, const std::vector<CorpusFile>& files,
            const PrepareCallbacks& callbacks, int64_t total_bytes) {
  SourceHashes hashes(options.datasets_root);
  json sources = json::array();
  for (const CorpusFile& file : files) {
    sources.push_back({{"kind", file.kind == CorpusFileKind::kText ? "text" : "jsonl"},
                       {"gzip", file.gzip},
                       {"size", file.size_bytes},
                       {"sha256", hashes.Hash(file)}});
    if (callbacks.progress) callbacks.progress(0, total_bytes);
  }
  hashes.Save();
  return {{"version", kFormatVersion},
          {"tokenizer", tokenizer.fingerprint()},
          {"text_field", options.text_field},
          {"sources", std::move(sources)}};
}

// A folder that goes away unless it is published.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const fs::path& root) {
    std::string pattern = (root / ".preparing-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) {
      const auto kind = errno == ENOSPC ? storage::StorageErrorKind::kNoSpace : storage::StorageErrorKind::kOther;
      throw storage::StorageError(kind,
                                  fmt::format("cannot make a folder in {}: {}", root.string(), std::strerror(errno)));
    }
    path_ = pattern;
    fs::permissions(path_, fs::perms(0755));  // Others share what is published.
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

class TokenizingSink : public DocumentSink {
 public:
  TokenizingSink(const Tokenizer& tokenizer, TokenWriter& writer, std::function<void(int64_t)> position)
      : tokenizer_(tokenizer), writer_(writer), position_(std::move(position)) {}

  void Text(std::string_view part) override {
    ids_.clear();
    if (!begun_) ids_ = tokenizer_.prefix();
    begun_ = true;
    tokenizer_.EncodeTo(part, cache_, ids_);
    writer_.Append(ids_);
    text_bytes_ += static_cast<int64_t>(part.size());
  }

  void EndDocument() override {
    if (!begun_) {
      ++empty_documents_;
      return;
    }
    begun_ = false;
    ids_ = tokenizer_.suffix();
    const auto eos = tokenizer_.eos();
    if (eos && (ids_.empty() || ids_.back() != *eos)) ids_.push_back(*eos);
    writer_.Append(ids_);
    writer_.EndDocument();
  }

  void Position(int64_t bytes_on_disk) override { position_(bytes_on_disk); }

  int64_t text_bytes() const { return text_bytes_; }
  int64_t empty_documents() const { return empty_documents_; }

 private:
  const Tokenizer& tokenizer_;
  TokenWriter& writer_;
  std::function<void(int64_t)> position_;
  MergeCache cache_;
  std::vector<TokenId> ids_;
  bool begun_ = false;
  int64_t text_bytes_ = 0;
  int64_t empty_documents_ = 0;
};

// Number of documents by length: below 2, below 4, ...
json LengthHistogram(const uint64_t* offsets, int64_t documents) {
  std::vector<int64_t> counts;
  for (int64_t i = 0; i < documents; ++i) {
    const uint64_t length = offsets[i + 1] - offsets[i];
    size_t bucket = 0;
    while ((uint64_t{2} << bucket) <= length) ++bucket;
    if (counts.size() <= bucket) counts.resize(bucket + 1);
    ++counts[bucket];
  }
  json histogram = json::array();
  for (size_t bucket = 0; bucket < counts.size(); ++bucket) {
    if (counts[bucket] > 0)
      histogram.push_back({{"below_tokens", uint64_t{2} << bucket}, {"documents", counts[bucket]}});
  }
  return histogram;
}

class Preparation {
 public:
  Preparation(const PrepareOptions& options, const PrepareCallbacks& callbacks)
      : options_(options), callbacks_(callbacks), tokenizer_(Tokenizer::Load(options.model_folder)) {}

  PreparedDataset Run() {
    const std::vector<CorpusFile> files = ListFiles(options_, callbacks_);
    for (const CorpusFile& file : files) total_bytes_ += file.size_bytes;
    const json recipe = Recipe(options_, tokenizer_, files, callbacks_, total_bytes_);
    result_.key = storage::Sha256Hex(recipe.dump()).substr(0, kKeyLetters);
    result_.folder = options_.datasets_root / result_.key;
    result_.reused = fs::exists(result_.folder / "dataset.json");
    if (!result_.reused) Build(files, recipe);
    if (callbacks_.progress) callbacks_.progress(total_bytes_, total_bytes_);
    Describe();
    return result_;
  }

 private:
  void Build(const std::vector<CorpusFile>& files, const json& recipe);
  void WriteAbout(const fs::path& folder, const TokenWriter& writer, const TokenizingSink& sink,
                  const json& recipe) const;
  void CheckIdsFitModel(int64_t vocab_size) const;
  void Describe();
  void WarnAbout(const json& about, const uint64_t* offsets) const;
  void WriteChoice() const;

  const PrepareOptions& options_;
  const PrepareCallbacks& callbacks_;
  Tokenizer tokenizer_;
  PreparedDataset result_;
  int64_t total_bytes_ = 0;
};

void Preparation::Build(const std::vector<CorpusFile>& files, const json& recipe) {
  const TemporaryFolder temporary(options_.datasets_root);
  TokenWriter writer(temporary.path(), tokenizer_.vocab_size() <= 65536 ? 2 : 4);
  int64_t files_done_bytes = 0;
  TokenizingSink sink(tokenizer_, writer, [&](int64_t bytes) {
    if (callbacks_.progress) callbacks_.progress(files_done_bytes + bytes, total_bytes_);
  });
  const DocumentOptions document_options{options_.text_field, tokenizer_.CanCutBeforeNewline()};
  for (const CorpusFile& file : files) {
    ReadDocuments(file, document_options, sink);
    CheckUnchanged(file);
    files_done_bytes += file.size_bytes;
  }
  if (writer.documents() == 0) {
    throw UserError(fmt::format("the corpus is empty: no text in {} files of data.sources, the first {}", files.size(),
                                files.front().path.string()));
  }
  writer.Finish();
  WriteAbout(temporary.path(), writer, sink, recipe);
  // False: somebody else published the same data first.
  storage::PublishFolder(temporary.path(), result_.folder);
}

void Preparation::WriteAbout(const fs::path& folder, const TokenWriter& writer, const TokenizingSink& sink,
                             const json& recipe) const {
  const MappedFile offsets = MappedFile::Open(folder / "documents.bin");
  const json about = {
      {"version", kFormatVersion},
      {"key", result_.key},
      {"documents", writer.documents()},
      {"empty_documents", sink.empty_documents()},
      {"tokens", writer.tokens()},
      {"text_bytes", sink.text_bytes()},
      {"bytes_per_token", tokenizer_.vocab_size() <= 65536 ? 2 : 4},
      {"vocab_size", int64_t{writer.largest_id()} + 1},
      {"eos", tokenizer_.eos() ? json(*tokenizer_.eos()) : json()},
      {"length_histogram", LengthHistogram(reinterpret_cast<const uint64_t*>(offsets.data()), writer.documents())},
      {"recipe", recipe},
  };
  storage::WriteFileAtomically(folder / "dataset.json", about.dump(2) + "\n");
}

void Preparation::CheckIdsFitModel(int64_t vocab_size) const {
  const fs::path path = options_.model_folder / "config.json";
  std::ifstream file(path);
  const json config = json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || !config.contains("vocab_size") || !config["vocab_size"].is_number_integer()) return;
  const auto model_vocab_size = config["vocab_size"].get<int64_t>();
  if (vocab_size <= model_vocab_size) return;
  throw UserError(
      fmt::format("cannot use {} with this tokenizer.json: the corpus has the token id {}, but vocab_size is {}",
                  path.string(), vocab_size - 1, model_vocab_size));
}

void Preparation::WarnAbout(const json& about, const uint64_t* offsets) const {
  int64_t shorter = 0;
  for (int64_t i = 0; i < result_.documents; ++i) {
    if (static_cast<int64_t>(offsets[i + 1] - offsets[i]) < options_.context_length) ++shorter;
  }
  if (shorter * 2 > result_.documents) {
    Warn(callbacks_,
         fmt::format("{} of {} documents are shorter than the context of {} tokens: most contexts will hold several "
                     "unrelated documents, from which a model learns little about long text",
                     shorter, result_.documents, options_.context_length));
  }
  if (const auto empty = about.at("empty_documents").get<int64_t>(); empty > 0) {
    Warn(callbacks_, fmt::format("{} documents without text were left out", empty));
  }
  if (about.at("eos").is_null())
    Warn(callbacks_, "the model folder names no eos_token: documents follow each other without a border");
  if (options_.holdout_fraction > 0 && result_.heldout_tokens < options_.longest_evaluation_length) {
    Warn(callbacks_,
         fmt::format(
             "the held-out part has {} tokens, fewer than the longest evaluation length of {}: the corpus is too small",
             result_.heldout_tokens, options_.longest_evaluation_length));
  }
}

// The counts of this job's split, its warnings and its dataset.json; from the published folder, so that a reused one is
// the same.
void Preparation::Describe() {
  json about;
  try {
    std::ifstream file(result_.folder / "dataset.json");
    about = json::parse(file);
    result_.documents = about.at("documents").get<int64_t>();
    result_.tokens = about.at("tokens").get<int64_t>();
    CheckIdsFitModel(about.at("vocab_size").get<int64_t>());
  } catch (const json::exception& error) {
    throw UserError(fmt::format("cannot read {}: {}; delete the folder and prepare again",
                                (result_.folder / "dataset.json").string(), error.what()));
  }
  if (result_.tokens < options_.context_length) {
    throw UserError(
        fmt::format("the corpus has {} tokens, fewer than one context of {}: add text or lower context_length",
                    result_.tokens, options_.context_length));
  }
  const MappedFile offsets = MappedFile::Open(result_.folder / "documents.bin");
  if (offsets.size() != (result_.documents + 1) * 8) {
    throw UserError(fmt::format("cannot use {}: documents.bin is damaged; delete the folder and prepare again",
                                result_.folder.string()));
  }
  const auto* starts = reinterpret_cast<const uint64_t*>(offsets.data());
  for (const TokenRange& range : ChooseHeldOut(starts, result_.documents, options_.holdout_fraction,
                                               options_.longest_evaluation_length, options_.context_length)) {
    result_.heldout_tokens += range.end - range.begin;
  }
  result_.training_tokens = result_.tokens - result_.heldout_tokens;
  result_.training_sequences = result_.training_tokens / options_.context_length;
  result_.dropped_tokens = result_.training_tokens % options_.context_length;
  WriteChoice();
  WarnAbout(about, starts);
}

// The path is relative, so that the storage may be mounted elsewhere tomorrow.
void Preparation::WriteChoice() const {
  const fs::path folder = fs::weakly_canonical(result_.folder).lexically_relative(fs::weakly_canonical(options_.work));
  const json choice = {{"version", kFormatVersion},
                       {"key", result_.key},
                       {"folder", folder.string()},
                       {"context_length", options_.context_length},
                       {"documents", result_.documents},
                       {"tokens", result_.tokens},
                       {"training_tokens", result_.training_tokens},
                       {"training_sequences", result_.training_sequences},
                       {"dropped_tokens", result_.dropped_tokens},
                       {"holdout",
                        {{"fraction", options_.holdout_fraction},
                         {"minimum_tokens", options_.longest_evaluation_length},
                         {"tokens", result_.heldout_tokens}}}};
  storage::WriteFileAtomically(options_.work / "dataset.json", choice.dump(2) + "\n");
}

}  // namespace

PrepareOptions PrepareOptionsOf(const jobfile::JobSpec& spec, const fs::path& work, const fs::path& datasets_root) {
  PrepareOptions options;
  options.sources.assign(spec.data.sources.begin(), spec.data.sources.end());
  options.format = spec.data.format;
  options.text_field = spec.data.text_field;
  options.packing = spec.data.packing;
  options.holdout_fraction = spec.data.holdout_fraction;
  options.context_length = spec.context_length;
  options.longest_evaluation_length = spec.context_length;
  for (const int64_t length : spec.evaluation.lengths) {
    options.longest_evaluation_length = std::max(options.longest_evaluation_length, length);
  }
  options.model_folder = spec.model.path;
  options.datasets_root = datasets_root;
  options.work = work;
  return options;
}

fs::path DefaultDatasetsRoot(const fs::path& work) {
  const fs::path absolute = fs::absolute(work / "").lexically_normal().parent_path();
  if (absolute.parent_path().filename() == "jobs") return absolute.parent_path().parent_path() / "datasets";
  return absolute / "datasets";
}

PreparedDataset Prepare(const PrepareOptions& options, const PrepareCallbacks& callbacks) {
  RefuseUnsupported(options);
  for (const fs::path& folder : {options.datasets_root, options.work}) {
    std::error_code error;
    fs::create_directories(folder, error);
    if (!error) continue;
    throw storage::StorageError(storage::StorageErrorKind::kOther,
                                fmt::format("cannot make the folder {}: {}", folder.string(), error.message()));
  }
  return Preparation(options, callbacks).Run();
}

}  // namespace longspan::trainer
