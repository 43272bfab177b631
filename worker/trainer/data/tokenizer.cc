#include "worker/trainer/data/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <unordered_map>

#include "worker/storage/storage.h"
#include "worker/trainer/data/added_tokens.h"
#include "worker/trainer/data/byte_pair_merges.h"
#include "worker/trainer/data/pre_tokenizer.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;

constexpr size_t kCachedPieceBytesMax = 64;   // longer pieces hardly ever come again
constexpr size_t kCacheEntriesMax = 1 << 17;  // then it starts afresh

struct TransparentHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

std::optional<std::string> ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

nlohmann::json ParseJson(const std::string& text, const fs::path& path) {
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    throw UserError(fmt::format("cannot read {}: it is not JSON: {}", path.string(), error.what()));
  }
}

std::optional<nlohmann::json> ReadJson(const fs::path& path) {
  const std::optional<std::string> text = ReadFile(path);
  if (!text) return std::nullopt;
  return ParseJson(*text, path);
}

// What the post-processor puts around one sequence.
struct Template {
  std::vector<TokenId> prefix;
  std::vector<TokenId> suffix;
};

void ReadTemplate(const nlohmann::json& processor, const std::string& file, Template& result) {
  const nlohmann::json& special = processor.at("special_tokens");
  bool behind = false;
  for (const nlohmann::json& part : processor.at("single")) {
    if (part.contains("Sequence")) {
      behind = true;
      continue;
    }
    const std::string name = part.at("SpecialToken").at("id").get<std::string>();
    if (!special.contains(name)) {
      throw UserError(fmt::format(
          "cannot use {}: the post_processor's template names {}, which its special_tokens lack", file, name));
    }
    for (const nlohmann::json& id : special[name].at("ids")) {
      (behind ? result.suffix : result.prefix).push_back(id.get<TokenId>());
    }
  }
}

void ReadPostProcessor(const nlohmann::json& processor, const std::string& file, Template& result) {
  if (processor.is_null()) return;
  const std::string type = processor.at("type").get<std::string>();
  if (type == "TemplateProcessing") {
    ReadTemplate(processor, file, result);
  } else if (type == "Sequence") {
    for (const nlohmann::json& member : processor.at("processors")) ReadPostProcessor(member, file, result);
  } else if (type != "ByteLevel") {  // ByteLevel trims offsets, which nobody here asks for.
    throw UserError(fmt::format(
        "cannot use {}: the post_processor {} is not supported; TemplateProcessing, ByteLevel and Sequence are", file,
        type));
  }
}

void RefuseNormalizer(const nlohmann::json& normalizer, const std::string& file) {
  if (normalizer.is_null()) return;
  const std::string type = normalizer.at("type").get<std::string>();
  if (type == "Sequence" && normalizer.at("normalizers").empty()) return;
  throw UserError(
      fmt::format("cannot use {}: the normalizer {} is not supported yet; a tokenizer without one is", file, type));
}

// A token in a configuration: "</s>" or {"content": "</s>", ...}.
std::optional<std::string> TokenText(const nlohmann::json& document, const char* key) {
  if (!document.is_object() || !document.contains(key)) return std::nullopt;
  const nlohmann::json& value = document[key];
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content")) return value["content"].get<std::string>();
  return std::nullopt;
}

}  // namespace

struct MergeCache::Entries {
  struct Span {
    uint32_t begin;
    uint32_t count;
  };
  std::unordered_map<std::string, Span, TransparentHash, std::equal_to<>> spans;
  std::vector<TokenId> ids;
  Pieces pieces;
};

MergeCache::MergeCache() : entries_(std::make_unique<Entries>()) {}
MergeCache::~MergeCache() = default;
MergeCache::MergeCache(MergeCache&&) noexcept = default;

struct Tokenizer::Impl {
  BytePairMerges merges;
  AddedTokens added;
  PreTokenizer pre_tokenizer;
  Template around;
  std::optional<TokenId> eos;
  int64_t vocab_size = 0;
  std::string fingerprint;

  void ReadEos(const fs::path& folder);
  TokenId IdOf(const std::string& token, const fs::path& named_in) const;
  void EncodePiece(std::string_view piece, MergeCache::Entries& cache, std::vector<TokenId>& ids) const;
};

TokenId Tokenizer::Impl::IdOf(const std::string& token, const fs::path& named_in) const {
  if (const auto id = added.Find(token)) return *id;
  const auto found = merges.vocabulary().find(token);
  if (found != merges.vocabulary().end()) return found->second;
  throw UserError(fmt::format("cannot use {}: its eos_token {} is not in tokenizer.json", named_in.string(), token));
}

void Tokenizer::Impl::ReadEos(const fs::path& folder) {
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const std::optional<nlohmann::json> document = ReadJson(folder / name);
    if (!document) continue;
    if (const auto token = TokenText(*document, "eos_token")) {
      eos = IdOf(*token, folder / name);
      return;
    }
  }
  const std::optional<nlohmann::json> config = ReadJson(folder / "config.json");
  if (!config || !config->is_object() || !config->contains("eos_token_id")) return;
  const nlohmann::json& id = (*config)["eos_token_id"];
  if (id.is_number_unsigned()) eos = id.get<TokenId>();
  if (id.is_array() && !id.empty() && id[0].is_number_unsigned()) eos = id[0].get<TokenId>();
}

void Tokenizer::Impl::EncodePiece(std::string_view piece, MergeCache::Entries& cache, std::vector<TokenId>& ids) const {
  if (piece.size() > kCachedPieceBytesMax) {
    merges.EncodeTo(piece, ids);
    return;
  }
  const auto found = cache.spans.find(piece);
  if (found != cache.spans.end()) {
    const TokenId* begin = cache.ids.data() + found->second.begin;
    ids.insert(ids.end(), begin, begin + found->second.count);
    return;
  }
  const size_t before = ids.size();
  merges.EncodeTo(piece, ids);
  if (cache.spans.size() >= kCacheEntriesMax) {
    cache.spans.clear();
    cache.ids.clear();
  }
  cache.spans.emplace(std::string(piece), MergeCache::Entries::Span{static_cast<uint32_t>(cache.ids.size()),
                                                                    static_cast<uint32_t>(ids.size() - before)});
  cache.ids.insert(cache.ids.end(), ids.begin() + static_cast<ptrdiff_t>(before), ids.end());
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::Load(const fs::path& model_folder) {
  const fs::path path = model_folder / "tokenizer.json";
  const std::string file = path.string();
  const std::optional<std::string> text = ReadFile(path);
  if (!text) {
    const bool sentencepiece = fs::exists(model_folder / "tokenizer.model");
    throw UserError(fmt::format("cannot read {}: {}", file,
                                sentencepiece
                                    ? "the folder has only tokenizer.model (sentencepiece), which is not supported yet"
                                    : "a model folder needs its tokenizer.json"));
  }
  const nlohmann::json document = ParseJson(*text, path);
  auto impl = std::make_unique<Impl>();
  try {
    RefuseNormalizer(document.value("normalizer", nlohmann::json()), file);
    impl->merges = BytePairMerges::Parse(document.at("model"), file);
    impl->added =
        AddedTokens::Parse(document.value("added_tokens", nlohmann::json::array()), impl->merges.vocabulary(), file);
    impl->pre_tokenizer = PreTokenizer::Parse(document.value("pre_tokenizer", nlohmann::json()), file);
    ReadPostProcessor(document.value("post_processor", nlohmann::json()), file, impl->around);
    impl->ReadEos(model_folder);
  } catch (const nlohmann::json::exception& error) {
    throw UserError(fmt::format("cannot read {}: not the structure of a tokenizer.json: {}", file, error.what()));
  }
  TokenId largest = impl->added.largest_id();
  for (const auto& [token, id] : impl->merges.vocabulary()) largest = std::max(largest, id);
  impl->vocab_size = int64_t{largest} + 1;
  if (impl->eos && *impl->eos > largest) {
    throw UserError(fmt::format("cannot use {}: eos_token_id {} is not in tokenizer.json, whose largest id is {}",
                                (model_folder / "config.json").string(), *impl->eos, largest));
  }
  impl->fingerprint =
      storage::Sha256Hex(*text + fmt::format("\neos {}", impl->eos ? static_cast<int64_t>(*impl->eos) : -1));
  return Tokenizer(std::move(impl));
}

void Tokenizer::EncodeTo(std::string_view text, MergeCache& cache, std::vector<TokenId>& ids) const {
  if (const auto at = FindInvalidUtf8(text))
    throw UserError(fmt::format("cannot encode a text: byte {} is not UTF-8", *at));
  MergeCache::Entries& entries = *cache.entries_;
  impl_->added.Split(text, [&](std::string_view part, std::optional<TokenId> token) {
    if (token) {
      ids.push_back(*token);
      return;
    }
    impl_->pre_tokenizer.Split(part, entries.pieces);
    for (std::string_view piece : entries.pieces.views) impl_->EncodePiece(piece, entries, ids);
  });
}

std::vector<TokenId> Tokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  std::vector<TokenId> ids;
  MergeCache cache;
  if (add_special_tokens) ids = prefix();
  EncodeTo(text, cache, ids);
  if (add_special_tokens) ids.insert(ids.end(), suffix().begin(), suffix().end());
  return ids;
}

const std::vector<TokenId>& Tokenizer::prefix() const { return impl_->around.prefix; }
const std::vector<TokenId>& Tokenizer::suffix() const { return impl_->around.suffix; }
std::optional<TokenId> Tokenizer::eos() const { return impl_->eos; }
int64_t Tokenizer::vocab_size() const { return impl_->vocab_size; }
const std::string& Tokenizer::fingerprint() const { return impl_->fingerprint; }
bool Tokenizer::CanCutBeforeNewline() const {
  return impl_->added.StaysWithinLines() && impl_->pre_tokenizer.CanCutBeforeNewline();
}

}  // namespace longspan::trainer
