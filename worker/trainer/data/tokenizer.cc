#include "worker/trainer/data/tokenizer.h"

#include <fmt/format.h>

#include <fstream>
#include <sstream>

#include "worker/storage/storage.h"
#include "worker/trainer/data/encoder.h"
#include "worker/trainer/data/json_encoder.h"
#include "worker/trainer/data/sentencepiece_encoder.h"
#include "worker/trainer/data/unicode_classes.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBlockBytes = size_t{1} << 18;  // of a long text that is encoded at once, where it may be cut
// Stands in front of a later part of a text, so that the part is not taken for a start. Any letter would do.
constexpr std::string_view kContext = "a";

std::optional<std::string> ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

// The folder's small JSON files; one that is not there counts as empty.
nlohmann::json ReadJsonObject(const fs::path& path) {
  const std::optional<std::string> text = ReadFile(path);
  if (!text) return nlohmann::json::object();
  nlohmann::json document = ParseJsonFile(*text, path.string());
  if (!document.is_object()) JsonPlace(document, path.string()).FailType("an object");
  return document;
}

// A token in a configuration: "</s>" or {"content": "</s>", ...}.
std::optional<std::string> TokenText(const JsonPlace& document, const char* key) {
  const auto value = document.Find(key);
  if (!value) return std::nullopt;
  if (value->value().is_object()) return value->At("content").String();
  return value->String();
}

// The first part of a long text: up to the last place before `bytes_max` where it may be cut; the whole when there is
// none.
size_t EndOfBlock(std::string_view text, size_t bytes_max) {
  if (text.size() <= bytes_max) return text.size();
  for (size_t at = bytes_max; at > 1; --at) {
    if (text[at] == '\n' && IsAsciiLetter(text[at - 1])) return at;
  }
  for (size_t at = bytes_max; at < text.size(); ++at) {
    if (text[at] == '\n' && IsAsciiLetter(text[at - 1])) return at;
  }
  return text.size();
}

}  // namespace

struct MergeCache::Entries {
  Encoder::Work work;
};

MergeCache::MergeCache() : entries_(std::make_unique<Entries>()) {}
MergeCache::~MergeCache() = default;
MergeCache::MergeCache(MergeCache&&) noexcept = default;

struct Tokenizer::Impl {
  std::unique_ptr<Encoder> encoder;
  std::string file_name;
  size_t context_ids = 0;  // of kContext
  std::optional<TokenId> eos;
  int64_t vocab_size = 0;
  std::string fingerprint;

  void ReadEos(const fs::path& folder);
  void EncodeBlocks(std::string_view text, bool continues, Encoder::Work& work, std::vector<TokenId>& ids) const;
  void EncodeLater(std::string_view block, Encoder::Work& work, std::vector<TokenId>& ids) const;
};

void Tokenizer::Impl::ReadEos(const fs::path& folder) {
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const nlohmann::json document = ReadJsonObject(folder / name);
    const JsonPlace place(document, (folder / name).string());
    const auto token = TokenText(place, "eos_token");
    if (!token) continue;
    eos = encoder->IdOf(*token);
    if (!eos) place.Fail(fmt::format("its eos_token {} is not in {}", *token, file_name));
    return;
  }
  const nlohmann::json config = ReadJsonObject(folder / "config.json");
  const JsonPlace place(config, (folder / "config.json").string());
  if (auto id = place.Find("eos_token_id")) {
    if (id->value().is_array()) {
      const std::vector<JsonPlace> several = id->Elements();
      if (several.empty()) return;
      id = several.front();
    }
    eos = static_cast<TokenId>(id->Unsigned(kTokenIdMax));
    if (*eos > encoder->largest_id()) {
      place.Fail(fmt::format("its eos_token_id {} is not in {}, whose largest id is {}", *eos, file_name,
                             encoder->largest_id()));
    }
    return;
  }
  eos = encoder->eos();
}

void Tokenizer::Impl::EncodeLater(std::string_view block, Encoder::Work& work, std::vector<TokenId>& ids) const {
  if (!encoder->prepends()) {
    encoder->EncodeTo(block, work, ids);
    return;
  }
  work.copy.assign(kContext).append(block);
  const auto before = static_cast<ptrdiff_t>(ids.size());
  encoder->EncodeTo(work.copy, work, ids);
  ids.erase(ids.begin() + before, ids.begin() + before + static_cast<ptrdiff_t>(context_ids));
}

void Tokenizer::Impl::EncodeBlocks(std::string_view text, bool continues, Encoder::Work& work,
                                   std::vector<TokenId>& ids) const {
  const bool may_cut = encoder->CanCutBeforeNewline();
  while (!text.empty()) {
    const size_t end = may_cut ? EndOfBlock(text, kBlockBytes) : text.size();
    if (continues) {
      EncodeLater(text.substr(0, end), work, ids);
    } else {
      encoder->EncodeTo(text.substr(0, end), work, ids);
    }
    text.remove_prefix(end);
    continues = true;
  }
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::Load(const fs::path& model_folder) {
  auto impl = std::make_unique<Impl>();
  std::string identity;
  if (const auto text = ReadFile(model_folder / "tokenizer.json")) {
    impl->file_name = "tokenizer.json";
    impl->encoder = MakeJsonEncoder(*text, (model_folder / "tokenizer.json").string());
    identity = *text;
  } else if (const auto model = ReadFile(model_folder / "tokenizer.model")) {
    impl->file_name = "tokenizer.model";
    const nlohmann::json config = ReadJsonObject(model_folder / "tokenizer_config.json");
    const nlohmann::json added = ReadJsonObject(model_folder / "added_tokens.json");
    impl->encoder = MakeSentencePieceEncoder(*model, (model_folder / "tokenizer.model").string(),
                                             JsonPlace(config, (model_folder / "tokenizer_config.json").string()),
                                             JsonPlace(added, (model_folder / "added_tokens.json").string()));
    identity = *model + added.dump();
    for (const std::vector<TokenId>& around : {impl->encoder->prefix(), impl->encoder->suffix()}) {
      identity += fmt::format("\n{}", fmt::join(around, " "));
    }
  } else {
    throw UserError(fmt::format("cannot read {}: a model folder needs its tokenizer.json or tokenizer.model",
                                (model_folder / "tokenizer.json").string()));
  }
  impl->ReadEos(model_folder);
  impl->vocab_size = int64_t{impl->encoder->largest_id()} + 1;
  for (const std::vector<TokenId>& around : {impl->encoder->prefix(), impl->encoder->suffix()}) {
    for (const TokenId id : around) {
      if (static_cast<int64_t>(id) < impl->vocab_size) continue;
      throw UserError(fmt::format("cannot read {}: post_processor puts id {} around a text, which is no token's",
                                  (model_folder / impl->file_name).string(), id));
    }
  }
  Encoder::Work work;
  std::vector<TokenId> context;
  impl->encoder->EncodeTo(kContext, work, context);
  impl->context_ids = context.size();
  impl->fingerprint =
      storage::Sha256Hex(identity + fmt::format("\neos {}", impl->eos ? static_cast<int64_t>(*impl->eos) : -1));
  return Tokenizer(std::move(impl));
}

void Tokenizer::EncodeTo(std::string_view text, MergeCache& cache, std::vector<TokenId>& ids) const {
  if (FindInvalidUtf8(text)) {
    impl_->EncodeBlocks(ReplaceInvalidUtf8(text), false, cache.entries_->work, ids);
  } else {
    impl_->EncodeBlocks(text, false, cache.entries_->work, ids);
  }
}

void Tokenizer::ContinueTo(std::string_view text, MergeCache& cache, std::vector<TokenId>& ids) const {
  if (FindInvalidUtf8(text)) {
    impl_->EncodeBlocks(ReplaceInvalidUtf8(text), true, cache.entries_->work, ids);
  } else {
    impl_->EncodeBlocks(text, true, cache.entries_->work, ids);
  }
}

std::vector<TokenId> Tokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  std::vector<TokenId> ids;
  MergeCache cache;
  if (add_special_tokens) ids = prefix();
  EncodeTo(text, cache, ids);
  if (add_special_tokens) ids.insert(ids.end(), suffix().begin(), suffix().end());
  return ids;
}

std::string Tokenizer::Decode(std::span<const TokenId> ids, bool skip_special) const {
  return impl_->encoder->Decode(ids, skip_special);
}

std::string Tokenizer::Decode(std::span<const int64_t> ids, bool skip_special) const {
  std::vector<TokenId> known;
  known.reserve(ids.size());
  for (const int64_t id : ids) {
    if (id >= 0 && id < impl_->vocab_size) known.push_back(static_cast<TokenId>(id));
  }
  return impl_->encoder->Decode(known, skip_special);
}

std::optional<TokenId> Tokenizer::IdOf(std::string_view token) const { return impl_->encoder->IdOf(token); }
const std::vector<TokenId>& Tokenizer::prefix() const { return impl_->encoder->prefix(); }
const std::vector<TokenId>& Tokenizer::suffix() const { return impl_->encoder->suffix(); }
std::optional<TokenId> Tokenizer::eos() const { return impl_->eos; }
int64_t Tokenizer::vocab_size() const { return impl_->vocab_size; }
const std::string& Tokenizer::fingerprint() const { return impl_->fingerprint; }
const std::string& Tokenizer::file_name() const { return impl_->file_name; }
bool Tokenizer::CanCutBeforeNewline() const { return impl_->encoder->CanCutBeforeNewline(); }

}  // namespace longspan::trainer
