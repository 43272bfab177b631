#include "worker/trainer/data/source_hashes.h"

#include <fmt/format.h>

#include <chrono>
#include <fstream>

#include "worker/storage/storage.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;

constexpr size_t kFilesMax = 100'000;
// A file this young may change again within one tick of the file system's clock, so its hash is not remembered.
constexpr std::chrono::seconds kSettled{2};

bool IsSettled(const CorpusFile& file) {
  const auto now = fs::file_time_type::clock::now().time_since_epoch();
  return now - std::chrono::nanoseconds(file.modified_ns) > kSettled;
}

std::string HashOf(const CorpusFile& file) {
  try {
    return storage::Sha256HexOfFile(file.path);
  } catch (const storage::StorageError& error) {
    throw UserError(error.what());
  }
}

}  // namespace

SourceHashes::SourceHashes(const fs::path& datasets_root) : path_(datasets_root / "source_hashes.json") {
  std::ifstream file(path_);
  known_ = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!known_.is_object() || known_.size() > kFilesMax) known_ = nlohmann::json::object();
}

std::string SourceHashes::Hash(const CorpusFile& file) {
  const std::string name = fs::absolute(file.path).string();
  const std::string state = fmt::format("{} bytes at {}", file.size_bytes, file.modified_ns);
  const auto known = known_.find(name);
  if (known != known_.end() && known->is_array() && known->size() == 2 && (*known)[0] == state &&
      (*known)[1].is_string()) {
    return (*known)[1].get<std::string>();
  }
  const std::string hash = HashOf(file);
  if (IsSettled(file)) {
    known_[name] = {state, hash};
    changed_ = true;
  }
  return hash;
}

void SourceHashes::Save() const {
  if (changed_)
    storage::WriteFileAtomically(path_, known_.dump(1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace longspan::trainer
