#include "worker/trainer/data/token_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "proto/support/check.h"
#include "worker/storage/storage.h"

namespace longspan::trainer {

static_assert(std::endian::native == std::endian::little, "tokens.bin is little-endian and mapped as it is");

TokenWriter::TokenWriter(const std::filesystem::path& folder, int bytes_per_token, bool with_scored)
    : folder_(folder), bytes_per_token_(bytes_per_token), with_scored_(with_scored) {
  CHECK(bytes_per_token == 2 || bytes_per_token == 4);
  token_file_.open(folder / "tokens.bin", std::ios::binary);
  offset_file_.open(folder / "documents.bin", std::ios::binary);
  if (with_scored_) scored_file_.open(folder / "scored.bin", std::ios::binary);
  const uint64_t start = 0;
  Write(offset_file_, &start, sizeof start);
}

void TokenWriter::Append(const std::vector<TokenId>& ids, const std::vector<uint8_t>& scored,
                         const std::vector<size_t>& document_ends) {
  CHECK(scored.size() == (with_scored_ ? ids.size() : 0));
  std::vector<uint64_t> ends;
  ends.reserve(document_ends.size());
  for (const size_t end : document_ends) ends.push_back(static_cast<uint64_t>(tokens_) + end);
  WriteIds(ids);
  if (with_scored_) Write(scored_file_, scored.data(), scored.size());
  Write(offset_file_, ends.data(), ends.size() * sizeof(uint64_t));
  tokens_ += static_cast<int64_t>(ids.size());
  documents_ += static_cast<int64_t>(ends.size());
}

void TokenWriter::WriteIds(const std::vector<TokenId>& ids) {
  if (ids.empty()) return;
  largest_id_ = std::max(largest_id_, *std::max_element(ids.begin(), ids.end()));
  if (bytes_per_token_ == 2) {
    CHECK(largest_id_ <= UINT16_MAX);
    narrow_.assign(ids.begin(), ids.end());
    Write(token_file_, narrow_.data(), narrow_.size() * 2);
  } else {
    Write(token_file_, ids.data(), ids.size() * 4);
  }
}

void TokenWriter::Finish() {
  token_file_.close();
  offset_file_.close();
  Write(token_file_, nullptr, 0);
  Write(offset_file_, nullptr, 0);
  if (!with_scored_) return;
  scored_file_.close();
  Write(scored_file_, nullptr, 0);
}

void TokenWriter::Write(std::ofstream& file, const void* bytes, size_t count) const {
  errno = 0;
  if (count > 0) file.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(count));
  if (file) return;
  const int error = errno;
  const auto kind =
      error == ENOSPC || error == EDQUOT ? storage::StorageErrorKind::kNoSpace : storage::StorageErrorKind::kOther;
  throw storage::StorageError(kind,
                              fmt::format("cannot write prepared data below {}: {}", folder_.parent_path().string(),
                                          error != 0 ? std::strerror(error) : "the write failed"));
}

}  // namespace longspan::trainer
