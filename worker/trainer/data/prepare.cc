#include "worker/trainer/data/prepare.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "proto/jobfile/enum_names.h"
#include "worker/storage/storage.h"
#include "worker/trainer/data/build_dataset.h"
#include "worker/trainer/data/chat_template.h"
#include "worker/trainer/data/corpus_files.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/data/mapped_file.h"
#include "worker/trainer/data/record_encoder.h"
#include "worker/trainer/data/record_example.h"
#include "worker/trainer/data/source_hashes.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kFormatVersion = 2;  // of the prepared folder, and a part of its key
constexpr size_t kKeyLetters = 32;

void Warn(const PrepareCallbacks& callbacks, const std::string& message) {
  if (callbacks.warning) callbacks.warning(message);
}

void RefuseUnsupported(const PrepareOptions& options) {
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
             "{} files in the folders of data.sources are not read, such as {}: only .txt, .jsonl, .json and these as "
             ".gz or .zst are",
             ignored, example));
  }
  return files;
}

const char* KindName(CorpusFileKind kind) {
  switch (kind) {
    case CorpusFileKind::kText:
      return "text";
    case CorpusFileKind::kJsonLines:
      return "jsonl";
    case CorpusFileKind::kJson:
      return "json";
  }
  return "?";
}

json SourcesRecipe(const PrepareOptions& options, const std::vector<CorpusFile>& files,
                   const PrepareCallbacks& callbacks, int64_t total_bytes) {
  SourceHashes hashes(options.datasets_root);
  json sources = json::array();
  for (const CorpusFile& file : files) {
    sources.push_back({{"kind", KindName(file.kind)},
                       {"packing", static_cast<int>(file.packing)},
                       {"size", file.size_bytes},
                       {"sha256", hashes.Hash(file)}});
    if (callbacks.progress) callbacks.progress(0, total_bytes);
  }
  hashes.Save();
  return sources;
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
    files_ = ListFiles(options_, callbacks_);
    for (const CorpusFile& file : files_) total_bytes_ += file.size_bytes;
    result_.format = options_.format ? *options_.format : FormatOfCorpus(files_, options_.text_field);
    if (options_.bucketing && SplitOptionsOfJob().rows == RowKind::kJoined) {
      throw SpecError(
          "data.bucketing: joined documents are all equally long; set data.packing: true, or leave bucketing out");
    }
    if (has_records()) {
      records_.emplace(tokenizer_, ChooseTemplate(options_.chat_template, options_.model_folder),
                       options_.context_length);
    }
    const json recipe = Recipe();
    result_.key = storage::Sha256Hex(recipe.dump()).substr(0, kKeyLetters);
    result_.folder = options_.datasets_root / result_.key;
    result_.reused = fs::exists(result_.folder / "dataset.json");
    if (!result_.reused) Build(recipe);
    if (callbacks_.progress) callbacks_.progress(total_bytes_, total_bytes_);
    Describe();
    return result_;
  }

 private:
  bool has_records() const { return result_.format != jobfile::DataFormat::kText; }
  json Recipe() const;
  void Build(const json& recipe);
  void WriteAbout(const fs::path& folder, const BuiltDataset& built, const json& recipe) const;
  void AddRecordFacts(const BuiltDataset& built, json& about) const;
  void CheckIdsFitModel(int64_t vocab_size) const;
  void Describe();
  void WarnAbout(const json& about, const uint64_t* offsets) const;
  void WarnAboutRecords(const json& about) const;
  SplitOptions SplitOptionsOfJob() const;
  void WriteChoice(const json& about, const SplitOptions& split) const;

  const PrepareOptions& options_;
  const PrepareCallbacks& callbacks_;
  Tokenizer tokenizer_;
  std::optional<RecordEncoder> records_;
  std::vector<CorpusFile> files_;
  PreparedDataset result_;
  int64_t total_bytes_ = 0;
};

// Everything that decides the prepared bytes.
json Preparation::Recipe() const {
  json recipe = {{"version", kFormatVersion},
                 {"tokenizer", tokenizer_.fingerprint()},
                 {"format", jobfile::NameOf(result_.format)},
                 {"sources", SourcesRecipe(options_, files_, callbacks_, total_bytes_)}};
  if (has_records()) {
    recipe["template"] = records_->record_template().Description();
    recipe["context_length"] = options_.context_length;  // longer records are cut
  } else {
    recipe["text_field"] = options_.text_field;
  }
  return recipe;
}

void Preparation::Build(const json& recipe) {
  const TemporaryFolder temporary(options_.datasets_root);
  std::vector<int64_t> bytes_before = {0};
  for (const CorpusFile& file : files_) bytes_before.push_back(bytes_before.back() + file.size_bytes);
  const auto position = [&](size_t file, int64_t bytes) {
    if (callbacks_.progress) callbacks_.progress(bytes_before[file] + bytes, total_bytes_);
  };
  const BuildOptions build_options{result_.format, options_.text_field, options_.threads};
  const BuiltDataset built =
      BuildDataset(files_, build_options, tokenizer_, records_ ? &*records_ : nullptr, temporary.path(), position);
  if (built.counts.dropped > 0 && built.documents == 0) {
    throw UserError(
        fmt::format("no record is left to train on: the prompts of all {} fill the context of {} tokens; "
                    "raise context_length",
                    built.counts.records, options_.context_length));
  }
  if (built.documents == 0) {
    throw UserError(fmt::format("the corpus is empty: no text in {} files of data.sources, the first {}", files_.size(),
                                files_.front().path.string()));
  }
  WriteAbout(temporary.path(), built, recipe);
  // False: somebody else published the same data first.
  storage::PublishFolder(temporary.path(), result_.folder);
}

void Preparation::WriteAbout(const fs::path& folder, const BuiltDataset& built, const json& recipe) const {
  const MappedFile offsets = MappedFile::Open(folder / "documents.bin");
  json about = {
      {"version", kFormatVersion},
      {"key", result_.key},
      {"format", jobfile::NameOf(result_.format)},
      {"documents", built.documents},
      {"empty_documents", built.counts.empty_documents},
      {"tokens", built.tokens},
      {"text_bytes", built.counts.text_bytes},
      {"bytes_per_token", tokenizer_.vocab_size() <= 65536 ? 2 : 4},
      {"vocab_size", int64_t{built.largest_id} + 1},
      {"eos", tokenizer_.eos() ? json(*tokenizer_.eos()) : json()},
      {"length_histogram", LengthHistogram(reinterpret_cast<const uint64_t*>(offsets.data()), built.documents)},
      {"recipe", recipe},
  };
  if (has_records()) AddRecordFacts(built, about);
  storage::WriteFileAtomically(folder / "dataset.json", about.dump(2) + "\n");
}

void Preparation::AddRecordFacts(const BuiltDataset& built, json& about) const {
  const CorpusCounts& counts = built.counts;
  about["template"] = about["recipe"]["template"]["name"];
  about["context_length"] = options_.context_length;
  // Rows are filled up with an id that the model has; its labels never count.
  about["pad"] = tokenizer_.eos().value_or(0);
  about["records"] = counts.records;
  about["dropped"] = counts.dropped;
  about["cut"] = counts.cut;
  about["scored_tokens"] = counts.scored_tokens;
  about["special_in_text"] = counts.special_in_text;
  if (counts.first_dropped) {
    about["first_dropped"] = {{"source", counts.first_dropped->file}, {"line", counts.first_dropped->line}};
  }
  about["example"] = built.example;
}

void Preparation::CheckIdsFitModel(int64_t vocab_size) const {
  const fs::path path = options_.model_folder / "config.json";
  std::ifstream file(path);
  const json config = json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || !config.contains("vocab_size") || !config["vocab_size"].is_number_integer()) return;
  const auto model_vocab_size = config["vocab_size"].get<int64_t>();
  if (vocab_size <= model_vocab_size) return;
  throw UserError(fmt::format("cannot use {} with this tokenizer: the corpus has the token id {}, but vocab_size is {}",
                              path.string(), vocab_size - 1, model_vocab_size));
}

void Preparation::WarnAbout(const json& about, const uint64_t* offsets) const {
  int64_t shorter = 0;
  for (int64_t i = 0; i < result_.documents; ++i) {
    if (static_cast<int64_t>(offsets[i + 1] - offsets[i]) < options_.context_length) ++shorter;
  }
  if (shorter * 2 > result_.documents && has_records() && !options_.packing) {
    Warn(callbacks_,
         fmt::format("{} of {} records are shorter than the context of {} tokens, and each is a row of its own: the "
                     "rest of most rows is padding; data.packing: true fills them",
                     shorter, result_.documents, options_.context_length));
  } else if (shorter * 2 > result_.documents && !has_records()) {
    Warn(callbacks_,
         fmt::format("{} of {} documents are shorter than the context of {} tokens: most contexts will hold several "
                     "unrelated documents, from which a model learns little about long text",
                     shorter, result_.documents, options_.context_length));
  }
  if (has_records()) WarnAboutRecords(about);
  if (const auto empty = about.at("empty_documents").get<int64_t>(); empty > 0) {
    Warn(callbacks_, fmt::format("{} documents without text were left out", empty));
  }
  if (about.at("eos").is_null())
    Warn(callbacks_, "the model folder names no eos_token: documents follow each other without a border");
  if (options_.holdout_fraction > 0 && SplitOptionsOfJob().rows == RowKind::kJoined &&
      result_.heldout_tokens < options_.longest_evaluation_length) {
    Warn(callbacks_,
         fmt::format(
             "the held-out part has {} tokens, fewer than the longest evaluation length of {}: the corpus is too small",
             result_.heldout_tokens, options_.longest_evaluation_length));
  }
}

void Preparation::WarnAboutRecords(const json& about) const {
  const auto records = about.at("records").get<int64_t>();
  if (const auto dropped = about.at("dropped").get<int64_t>(); dropped > 0) {
    const json& first = about.at("first_dropped");
    Warn(callbacks_,
         fmt::format("{} of {} records are dropped, because their prompt fills the context of {} tokens and "
                     "leaves no answer to learn; the first is {} line {}",
                     dropped, records, options_.context_length,
                     files_.at(first.at("source").get<size_t>()).path.string(), first.at("line").get<int64_t>()));
  }
  if (const auto cut = about.at("cut").get<int64_t>(); cut > 0) {
    Warn(callbacks_,
         fmt::format("{} of {} records are longer than the context of {} tokens: the end of their answer is "
                     "cut off and not trained",
                     cut, records, options_.context_length));
  }
  if (const auto special = about.at("special_in_text").get<int64_t>(); special > 0) {
    Warn(callbacks_, fmt::format("{} of {} records have a text that spells a special token of template {}, which the "
                                 "tokenizer takes for that token",
                                 special, records, about.at("template").get<std::string>()));
  }
}

SplitOptions Preparation::SplitOptionsOfJob() const {
  SplitOptions split;
  if (options_.packing) {
    split.rows = RowKind::kPacked;
  } else if (has_records()) {
    split.rows = RowKind::kRecords;
  }
  split.whole_documents = has_records();
  split.holdout_fraction = options_.holdout_fraction;
  split.minimum_heldout_tokens = options_.longest_evaluation_length;
  split.context_length = options_.context_length;
  return split;
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
  const SplitOptions split_options = SplitOptionsOfJob();
  if (split_options.rows == RowKind::kJoined && result_.tokens < options_.context_length) {
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
  const DataSplit split = SplitData(starts, result_.documents, split_options);
  result_.heldout_tokens = split.heldout_tokens;
  result_.training_tokens = split.training_tokens;
  result_.training_sequences = split.rows;
  result_.dropped_tokens = split.dropped_tokens;
  result_.padding_tokens = split.padding_tokens;
  if (has_records()) result_.example = ExampleLines(about.value("example", json()));
  WriteChoice(about, split_options);
  WarnAbout(about, starts);
}

// The path is relative, so that the storage may be mounted elsewhere tomorrow.
void Preparation::WriteChoice(const json& about, const SplitOptions& split) const {
  const fs::path folder = fs::weakly_canonical(result_.folder).lexically_relative(fs::weakly_canonical(options_.work));
  json choice = {{"version", kFormatVersion},
                 {"key", result_.key},
                 {"folder", folder.string()},
                 {"context_length", options_.context_length},
                 {"format", jobfile::NameOf(result_.format)},
                 {"rows", NameOf(split.rows)},
                 {"bucketing", options_.bucketing},
                 {"documents", result_.documents},
                 {"tokens", result_.tokens},
                 {"training_tokens", result_.training_tokens},
                 {"training_sequences", result_.training_sequences},
                 {"dropped_tokens", result_.dropped_tokens},
                 {"padding_tokens", result_.padding_tokens},
                 {"holdout",
                  {{"fraction", options_.holdout_fraction},
                   {"whole_documents", split.whole_documents},
                   {"minimum_tokens", options_.longest_evaluation_length},
                   {"tokens", result_.heldout_tokens}}}};
  for (const char* fact : {"template", "records", "dropped", "cut", "scored_tokens", "example"}) {
    if (has_records()) choice[fact] = about.at(fact);
  }
  storage::WriteFileAtomically(options_.work / "dataset.json", choice.dump(2) + "\n");
}

}  // namespace

PrepareOptions PrepareOptionsOf(const jobfile::JobSpec& spec, const fs::path& work, const fs::path& datasets_root) {
  PrepareOptions options;
  options.sources.assign(spec.data.sources.begin(), spec.data.sources.end());
  options.format = spec.data.format;
  options.text_field = spec.data.text_field;
  options.chat_template = spec.data.chat_template;
  options.packing = spec.data.packing;
  options.bucketing = spec.data.bucketing;
  options.holdout_fraction = spec.data.holdout_fraction;
  options.context_length = spec.context_length;
  options.longest_evaluation_length = spec.context_length;
  if (spec.kind ==
      jobfile::JobKind::kEvaluate) {  // trains nothing: all of the text is measured, in any length there is
    options.holdout_fraction = 1;
    for (const int64_t length : spec.evaluation.lengths)
      options.context_length = std::min(options.context_length, length);
  }
  for (const int64_t length : spec.evaluation.lengths) {
    options.longest_evaluation_length = std::max(options.longest_evaluation_length, length);
  }
  options.model_folder = spec.model.path;
  options.datasets_root = datasets_root;
  options.work = work;
  options.threads = spec.resources.threads_per_slot;
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
