#include "worker/trainer/data/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "proto/support/check.h"
#include "worker/trainer/data/mapped_file.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Documents in the order in which they are held out: by a hash of their number.
std::vector<int64_t> HoldOutOrder(int64_t documents) {
  std::vector<int64_t> order(static_cast<size_t>(documents));
  for (int64_t i = 0; i < documents; ++i) order[static_cast<size_t>(i)] = i;
  std::sort(order.begin(), order.end(), [](int64_t a, int64_t b) {
    return Mix(static_cast<uint64_t>(a)) < Mix(static_cast<uint64_t>(b));  // Mix is a bijection: no ties.
  });
  return order;
}

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

// What sorted, disjoint ranges leave of [0, end).
std::vector<TokenRange> Complement(const std::vector<TokenRange>& ranges, int64_t end) {
  std::vector<TokenRange> result;
  int64_t done = 0;
  for (const TokenRange& range : ranges) {
    if (range.begin > done) result.push_back({done, range.begin});
    done = range.end;
  }
  if (end > done) result.push_back({done, end});
  return result;
}

}  // namespace

std::vector<TokenRange> ChooseHeldOut(const uint64_t* offsets, int64_t documents, double fraction,
                                      int64_t minimum_tokens, int64_t context_length) {
  const auto total = static_cast<int64_t>(offsets[documents]);
  if (fraction <= 0) return {};
  int64_t wanted = std::max(static_cast<int64_t>(std::floor(static_cast<double>(total) * fraction)),
                            std::min(minimum_tokens, total / 4));
  wanted = std::min(wanted, total - context_length);
  std::vector<TokenRange> ranges;
  for (const int64_t document : HoldOutOrder(documents)) {
    if (wanted <= 0) break;
    const auto begin = static_cast<int64_t>(offsets[document]);
    const auto end = static_cast<int64_t>(offsets[document + 1]);
    const int64_t taken = std::min(wanted, end - begin);
    if (taken > 0) ranges.push_back({end - taken, end});
    wanted -= taken;
  }
  std::sort(ranges.begin(), ranges.end(), [](const TokenRange& a, const TokenRange& b) { return a.begin < b.begin; });
  return ranges;
}

// A Feistel network over the smallest even number of bits that holds count - 1; values outside are sent round again
// (cycle walking), which ends because the network is a bijection. At most 4 times as many values as count, so 4 rounds
// on average at worst.
int64_t Permute(int64_t index, int64_t count, uint64_t key) {
  CHECK(index >= 0 && index < count);
  int half_bits = 1;
  while ((int64_t{1} << (2 * half_bits)) < count) ++half_bits;
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  auto value = static_cast<uint64_t>(index);
  do {
    uint64_t left = value >> half_bits;
    uint64_t right = value & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t next = left ^ (Mix(key ^ Mix(right << 8 | round)) & mask);
      left = right;
      right = next;
    }
    value = left << half_bits | right;
  } while (value >= static_cast<uint64_t>(count));
  return static_cast<int64_t>(value);
}

BatchSlice SliceOfRank(int64_t global_batch, int64_t rank, int64_t world_size) {
  CHECK(world_size > 0 && rank >= 0 && rank < world_size && global_batch >= 0);
  return {global_batch * rank / world_size, global_batch * (rank + 1) / world_size};
}

struct Dataset::Impl {
  std::string key;
  int64_t context_length = 0;
  int64_t vocab_size = 0;
  int bytes_per_token = 2;
  MappedFile tokens;
  Stream training;
  Stream heldout;

  template <typename Stored>
  void Copy(const Stream& stream, int64_t begin, int64_t count, int64_t* out) const {
    const auto* stored = reinterpret_cast<const Stored*>(tokens.data());
    stream.ForParts(begin, count, [&](int64_t position, int64_t taken) {
      out = std::copy(stored + position, stored + position + taken, out);
    });
  }
  void Read(const Stream& stream, int64_t begin, int64_t count, int64_t* out) const {
    if (bytes_per_token == 2) {
      Copy<uint16_t>(stream, begin, count, out);
    } else {
      Copy<uint32_t>(stream, begin, count, out);
    }
  }
  void OpenFolder(const fs::path& folder, const nlohmann::json& split);
};

void Dataset::Impl::OpenFolder(const fs::path& folder, const nlohmann::json& split) {
  const nlohmann::json about = ReadDocument(folder / "dataset.json");
  const auto total = about.at("tokens").get<int64_t>();
  const auto documents = about.at("documents").get<int64_t>();
  vocab_size = about.at("vocab_size").get<int64_t>();
  bytes_per_token = about.at("bytes_per_token").get<int>();
  const auto open = [](const fs::path& path, int64_t bytes) {
    MappedFile file = MappedFile::Open(path);
    if (file.size() == bytes) return file;
    throw UserError(fmt::format(
        "cannot use {}: it has {} bytes where dataset.json tells of {}; delete its folder and prepare again",
        path.string(), file.size(), bytes));
  };
  tokens = open(folder / "tokens.bin", total * bytes_per_token);
  const MappedFile offsets = open(folder / "documents.bin", (documents + 1) * 8);
  const auto heldout_ranges =
      ChooseHeldOut(reinterpret_cast<const uint64_t*>(offsets.data()), documents, split.at("fraction").get<double>(),
                    split.at("minimum_tokens").get<int64_t>(), context_length);
  training = Stream(Complement(heldout_ranges, total));
  heldout = Stream(heldout_ranges);
}

Dataset::Dataset(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Dataset::~Dataset() = default;
Dataset::Dataset(Dataset&&) noexcept = default;

Dataset Dataset::Open(const fs::path& work) {
  const fs::path path = work / "dataset.json";
  const nlohmann::json chosen = ReadDocument(path);
  auto impl = std::make_unique<Impl>();
  try {
    impl->key = chosen.at("key").get<std::string>();
    impl->context_length = chosen.at("context_length").get<int64_t>();
    impl->OpenFolder(fs::weakly_canonical(work) / chosen.at("folder").get<std::string>(), chosen.at("holdout"));
  } catch (const nlohmann::json::exception& error) {
    throw UserError(fmt::format("cannot read {}: {}", path.string(), error.what()));
  }
  if (impl->training.length() < impl->context_length) {
    throw UserError(fmt::format("cannot train on {}: {} tokens are fewer than one context of {}", path.string(),
                                impl->training.length(), impl->context_length));
  }
  return Dataset(std::move(impl));
}

const std::string& Dataset::key() const { return impl_->key; }
int64_t Dataset::context_length() const { return impl_->context_length; }
int64_t Dataset::training_sequences() const { return impl_->training.length() / impl_->context_length; }
int64_t Dataset::training_tokens() const { return impl_->training.length(); }
int64_t Dataset::heldout_tokens() const { return impl_->heldout.length(); }
int64_t Dataset::vocab_size() const { return impl_->vocab_size; }

std::vector<int64_t> Dataset::SequenceIds(uint64_t seed, int64_t step, int64_t global_batch) const {
  const int64_t sequences = training_sequences();
  std::vector<int64_t> ids;
  ids.reserve(static_cast<size_t>(global_batch));
  for (int64_t row = 0; row < global_batch; ++row) {
    const int64_t place = step * global_batch + row;
    const auto epoch = static_cast<uint64_t>(place / sequences);
    ids.push_back(Permute(place % sequences, sequences, Mix(seed) ^ Mix(~epoch)));
  }
  return ids;
}

void Dataset::Sequence(int64_t id, int64_t* tokens) const {
  CHECK(id >= 0 && id < training_sequences());
  impl_->Read(impl_->training, id * impl_->context_length, impl_->context_length, tokens);
}

std::vector<int64_t> Dataset::Sequence(int64_t id) const {
  std::vector<int64_t> tokens(static_cast<size_t>(impl_->context_length));
  Sequence(id, tokens.data());
  return tokens;
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
  std::vector<int64_t> tokens(static_cast<size_t>(count));
  impl_->Read(impl_->heldout, begin, count, tokens.data());
  return tokens;
}

}  // namespace longspan::trainer
