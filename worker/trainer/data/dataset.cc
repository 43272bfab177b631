#include "worker/trainer/data/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "proto/support/check.h"
#include "worker/trainer/data/mapped_file.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;

nlohmann::json ReadDocument(const fs::path& path) {
  std::ifstream file(path);
  if (!file) throw UserError(fmt::format("cannot read {}: run the prepare phase first", path.string()));
  try {
    return nlohmann::json::parse(file);
  } catch (const nlohmann::json::exception& error) {
    throw UserError(fmt::format("cannot read {}: {}", path.string(), error.what()));
  }
}

// Ranges of token positions, as one stream.
class Stream {
 public:
  Stream() = default;
  explicit Stream(std::vector<TokenRange> ranges) : ranges_(std::move(ranges)) {
    for (const TokenRange& range : ranges_) {
      starts_.push_back(length_);
      length_ += range.end - range.begin;
    }
  }
  int64_t length() const { return length_; }

  // Calls visit(position in tokens.bin, count) for the parts that make up stream positions [begin, begin + count).
  template <typename Visit>
  void ForParts(int64_t begin, int64_t count, Visit visit) const {
    CHECK(begin >= 0 && count >= 0 && begin + count <= length_);
    auto part = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin()) - 1;
    while (count > 0) {
      const int64_t skipped = begin - starts_[part];
      const int64_t taken = std::min(count, ranges_[part].end - ranges_[part].begin - skipped);
      visit(ranges_[part].begin + skipped, taken);
      begin += taken;
      count -= taken;
      ++part;
    }
  }

 private:
  std::vector<TokenRange> ranges_;  // none is empty
  std::vector<int64_t> starts_;
  int64_t length_ = 0;
};

}  // namespace

BatchSlice SliceOfRank(int64_t global_batch, int64_t rank, int64_t world_size) {
  CHECK(world_size > 0 && rank >= 0 && rank < world_size && global_batch >= 0);
  return {global_batch * rank / world_size, global_batch * (rank + 1) / world_size};
}

int64_t LargestSlice(int64_t global_batch, int64_t world_size) { return (global_batch + world_size - 1) / world_size; }

struct Dataset::Impl {
  std::string key;
  SplitOptions options;
  int64_t vocab_size = 0;
  int64_t pad = 0;
  int bytes_per_token = 2;
  MappedFile tokens;
  std::optional<MappedFile> scored;  // one byte per token, 0: never scored; absent: all are
  DataSplit split;
  Stream training;  // joined only
  Stream heldout;
  RowOrder order{0};

  void Read(int64_t position, int64_t count, int64_t* out) const {
    if (bytes_per_token == 2) {
      const auto* stored = reinterpret_cast<const uint16_t*>(tokens.data()) + position;
      std::copy(stored, stored + count, out);
    } else {
      const auto* stored = reinterpret_cast<const uint32_t*>(tokens.data()) + position;
      std::copy(stored, stored + count, out);
    }
  }
  void ReadLabels(int64_t position, const int64_t* ids, int64_t count, int64_t* out) const {
    for (int64_t i = 0; i < count; ++i) {
      const bool counts = !scored || reinterpret_cast<const uint8_t*>(scored->data())[position + i] != 0;
      out[i] = counts ? ids[i] : kUnscoredLabel;
    }
  }
  void OpenFolder(const fs::path& folder);
  Rows ReadPlanned(const RowPlan& plan, const std::vector<int64_t>& ids) const;
  Rows ReadStream(const Stream& stream, const std::vector<int64_t>& begins, int64_t length) const;
};

void Dataset::Impl::OpenFolder(const fs::path& folder) {
  const nlohmann::json about = ReadDocument(folder / "dataset.json");
  const auto total = about.at("tokens").get<int64_t>();
  const auto documents = about.at("documents").get<int64_t>();
  vocab_size = about.at("vocab_size").get<int64_t>();
  bytes_per_token = about.at("bytes_per_token").get<int>();
  pad = about.value("pad", int64_t{0});
  const auto open = [](const fs::path& path, int64_t bytes) {
    MappedFile file = MappedFile::Open(path);
    if (file.size() == bytes) return file;
    throw UserError(fmt::format(
        "cannot use {}: it has {} bytes where dataset.json tells of {}; delete its folder and prepare again",
        path.string(), file.size(), bytes));
  };
  tokens = open(folder / "tokens.bin", total * bytes_per_token);
  const MappedFile offsets = open(folder / "documents.bin", (documents + 1) * 8);
  if (fs::exists(folder / "scored.bin")) scored = open(folder / "scored.bin", total);
  split = SplitData(reinterpret_cast<const uint64_t*>(offsets.data()), documents, options);
  if (options.rows == RowKind::kJoined) training = Stream(split.training);
  heldout = Stream(split.heldout);
}

Rows Dataset::Impl::ReadPlanned(const RowPlan& plan, const std::vector<int64_t>& ids) const {
  Rows rows;
  rows.rows = static_cast<int64_t>(ids.size());
  for (const int64_t id : ids) {
    CHECK(id >= 0 && id < plan.rows());
    rows.lengths.push_back(plan.RowTokens(id));
    rows.tokens = std::max(rows.tokens, rows.lengths.back());
  }
  const auto size = static_cast<size_t>(rows.rows * rows.tokens);
  rows.input_ids.assign(size, pad);
  rows.labels.assign(size, kUnscoredLabel);
  rows.document_ids.assign(size, 0);
  for (size_t row = 0; row < ids.size(); ++row) {
    auto place = static_cast<int64_t>(row) * rows.tokens;
    const int64_t end = place + rows.tokens;
    const auto first_piece = static_cast<size_t>(plan.row_begins[static_cast<size_t>(ids[row])]);
    const auto end_piece = static_cast<size_t>(plan.row_begins[static_cast<size_t>(ids[row]) + 1]);
    for (size_t piece = first_piece; piece < end_piece; ++piece) {
      const TokenRange& range = plan.pieces[piece];
      Read(range.begin, range.size(), &rows.input_ids[static_cast<size_t>(place)]);
      ReadLabels(range.begin, &rows.input_ids[static_cast<size_t>(place)], range.size(),
                 &rows.labels[static_cast<size_t>(place)]);
      std::fill_n(rows.document_ids.begin() + place, range.size(), static_cast<int64_t>(piece - first_piece));
      place += range.size();
    }
    std::fill_n(rows.document_ids.begin() + place, end - place, static_cast<int64_t>(end_piece - first_piece));
  }
  return rows;
}

Rows Dataset::Impl::ReadStream(const Stream& stream, const std::vector<int64_t>& begins, int64_t length) const {
  Rows rows;
  rows.rows = static_cast<int64_t>(begins.size());
  rows.tokens = length;
  rows.lengths.assign(begins.size(), length);
  rows.input_ids.resize(begins.size() * static_cast<size_t>(length));
  rows.labels.resize(rows.input_ids.size());
  int64_t* ids = rows.input_ids.data();
  int64_t* labels = rows.labels.data();
  for (const int64_t begin : begins) {
    stream.ForParts(begin, length, [&](int64_t position, int64_t count) {
      Read(position, count, ids);
      ReadLabels(position, ids, count, labels);
      ids += count;
      labels += count;
    });
  }
  return rows;
}

Dataset::Dataset(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Dataset::~Dataset() = default;
Dataset::Dataset(Dataset&&) noexcept = default;

Dataset Dataset::Open(const fs::path& work) {
  const fs::path path = work / "dataset.json";
  const nlohmann::json chosen = ReadDocument(path);
  auto impl = std::make_unique<Impl>();
  bool bucketing = false;
  try {
    impl->key = chosen.at("key").get<std::string>();
    const auto rows = RowKindOf(chosen.value("rows", "joined"));
    if (!rows) throw UserError(fmt::format("cannot read {}: rows is none of joined, packed, records", path.string()));
    const nlohmann::json& holdout = chosen.at("holdout");
    impl->options.rows = *rows;
    impl->options.whole_documents = holdout.value("whole_documents", false);
    impl->options.holdout_fraction = holdout.at("fraction").get<double>();
    impl->options.minimum_heldout_tokens = holdout.at("minimum_tokens").get<int64_t>();
    impl->options.context_length = chosen.at("context_length").get<int64_t>();
    bucketing = chosen.value("bucketing", false);
    impl->OpenFolder(fs::weakly_canonical(work) / chosen.at("folder").get<std::string>());
  } catch (const nlohmann::json::exception& error) {
    throw UserError(fmt::format("cannot read {}: {}", path.string(), error.what()));
  }
  const bool all_is_measured = impl->split.training_tokens == 0 && impl->split.heldout_tokens > 0;
  if (impl->split.rows == 0 && !all_is_measured) {
    throw UserError(fmt::format("cannot train on {}: {} tokens are fewer than one context of {}", path.string(),
                                impl->split.training_tokens, impl->options.context_length));
  }
  impl->order = bucketing && impl->options.rows != RowKind::kJoined ? RowOrder::Bucketed(impl->split.plan)
                                                                    : RowOrder(impl->split.rows);
  return Dataset(std::move(impl));
}

const std::string& Dataset::key() const { return impl_->key; }
RowKind Dataset::row_kind() const { return impl_->options.rows; }
int64_t Dataset::context_length() const { return impl_->options.context_length; }
int64_t Dataset::training_sequences() const { return impl_->split.rows; }
int64_t Dataset::training_tokens() const { return impl_->split.training_tokens; }
int64_t Dataset::heldout_tokens() const { return impl_->split.heldout_tokens; }
int64_t Dataset::vocab_size() const { return impl_->vocab_size; }

std::vector<int64_t> Dataset::SequenceIds(uint64_t seed, int64_t step, int64_t global_batch) const {
  return impl_->order.Step(seed, step, global_batch);
}

Rows Dataset::ReadRows(const std::vector<int64_t>& ids) const {
  if (impl_->options.rows != RowKind::kJoined) return impl_->ReadPlanned(impl_->split.plan, ids);
  std::vector<int64_t> begins;
  begins.reserve(ids.size());
  for (const int64_t id : ids) {
    CHECK(id >= 0 && id < training_sequences());
    begins.push_back(id * context_length());
  }
  return impl_->ReadStream(impl_->training, begins, context_length());
}

std::vector<int64_t> Dataset::DocumentLengths(int64_t id) const {
  CHECK(id >= 0 && id < training_sequences());
  if (impl_->options.rows == RowKind::kJoined) return {context_length()};
  const RowPlan& plan = impl_->split.plan;
  std::vector<int64_t> lengths;
  for (int64_t piece = plan.row_begins[static_cast<size_t>(id)]; piece < plan.row_begins[static_cast<size_t>(id) + 1];
       ++piece) {
    lengths.push_back(plan.pieces[static_cast<size_t>(piece)].size());
  }
  return lengths;
}

std::vector<int64_t> Dataset::Sequence(int64_t id) const { return ReadRows({id}).input_ids; }

int64_t Dataset::HeldOut::count() const {
  return data_->options.rows != RowKind::kJoined ? plan_.rows() : data_->split.heldout_tokens / length_;
}

Rows Dataset::HeldOut::Read(int64_t first, int64_t count) const {
  std::vector<int64_t> rows(static_cast<size_t>(count));
  const bool joined = data_->options.rows == RowKind::kJoined;
  for (int64_t row = 0; row < count; ++row) rows[static_cast<size_t>(row)] = (first + row) * (joined ? length_ : 1);
  return joined ? data_->ReadStream(data_->heldout, rows, length_) : data_->ReadPlanned(plan_, rows);
}

Dataset::HeldOut Dataset::HeldOutRows(int64_t length) const {
  HeldOut heldout;
  heldout.data_ = impl_.get();
  heldout.length_ = length;
  if (row_kind() != RowKind::kJoined) {
    heldout.plan_ = PlanHeldOut(impl_->split, impl_->options.whole_documents, length);
  }
  return heldout;
}

int64_t Dataset::HeldOutWindows(int64_t length) const {
  CHECK(length > 0);
  return heldout_tokens() / length;
}

std::vector<int64_t> Dataset::HeldOutWindow(int64_t length, int64_t index) const {
  CHECK(index >= 0 && index < HeldOutWindows(length));
  return HeldOutTokens(index * length, length);
}

std::vector<int64_t> Dataset::HeldOutTokens(int64_t begin, int64_t count) const {
  return impl_->ReadStream(impl_->heldout, {begin}, count).input_ids;
}

}  // namespace longspan::trainer
