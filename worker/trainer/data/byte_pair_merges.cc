#include "worker/trainer/data/byte_pair_merges.h"

#include <fmt/format.h>

#include <optional>
#include <queue>

#include "worker/trainer/data/unicode_classes.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

// Byte-level vocabularies write bytes as printable letters: printable Latin-1 as itself, the other 68 as U+0100 onward.
std::array<uint32_t, 256> MakeByteLetters() {
  std::array<uint32_t, 256> letters{};
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    letters[byte] = printable ? byte : next++;
  }
  return letters;
}

std::string Utf8Of(uint32_t c) {
  if (c < 0x80) return std::string(1, static_cast<char>(c));
  return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
}

// The bytes that a token of byte letters stands for; empty for a token with other letters (an added one).
std::optional<std::string> BytesOf(std::string_view token) {
  static const std::unordered_map<uint32_t, char> bytes = [] {
    std::unordered_map<uint32_t, char> made;
    const auto letters = MakeByteLetters();
    for (size_t byte = 0; byte < 256; ++byte) made[letters[byte]] = static_cast<char>(byte);
    return made;
  }();
  std::string result;
  for (size_t at = 0; at < token.size();) {
    const Character c = CharacterAt(token, at);
    const auto found = bytes.find(c.code_point);
    if (found == bytes.end()) return std::nullopt;
    result += found->second;
    at += c.bytes;
  }
  return result;
}

uint64_t PairKey(TokenId left, TokenId right) { return uint64_t{left} << 32 | right; }

void RefuseUnsupported(const nlohmann::json& model, const std::string& file) {
  const std::string type = model.value("type", "BPE");
  if (type != "BPE") {
    throw UserError(fmt::format("cannot use {}: its model is {}; only byte-level BPE is supported", file, type));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model.contains(key) && model[key].is_string() && !model[key].get<std::string>().empty()) {
      throw UserError(fmt::format("cannot use {}: its model has a {}, which is not supported", file, key));
    }
  }
  if (model.contains("dropout") && model["dropout"].is_number() && model["dropout"].get<double>() != 0) {
    throw UserError(
        fmt::format("cannot use {}: its model has dropout, which makes the ids random; set it to null", file));
  }
}

// "a b", or ["a", "b"] in newer files.
std::pair<std::string, std::string> ReadPair(const nlohmann::json& merge, const std::string& file) {
  if (merge.is_array() && merge.size() == 2) return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  if (merge.is_string()) {
    const std::string text = merge.get<std::string>();
    const size_t space = text.find(' ');
    if (space != std::string::npos) return {text.substr(0, space), text.substr(space + 1)};
  }
  throw UserError(fmt::format("cannot use {}: the merge {} is not a pair", file, merge.dump()));
}

}  // namespace

// A doubly linked list of tokens in an array: joining two is O(1), and an entry of the queue whose symbols changed is
// recognised.
struct BytePairMerges::Symbol {
  TokenId id;
  int32_t previous;
  int32_t next;
  bool gone;
};

BytePairMerges BytePairMerges::Parse(const nlohmann::json& model, const std::string& file) {
  RefuseUnsupported(model, file);
  BytePairMerges result;
  const nlohmann::json& vocabulary = model.at("vocab");
  result.vocabulary_.reserve(vocabulary.size());
  for (const auto& [token, id] : vocabulary.items()) result.vocabulary_[token] = id.get<TokenId>();
  result.ReadBytes(file);
  result.ReadMerges(model.at("merges"), file);
  if (model.value("ignore_merges", false)) result.ReadWholeWords();
  return result;
}

void BytePairMerges::ReadBytes(const std::string& file) {
  const auto letters = MakeByteLetters();
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto found = vocabulary_.find(Utf8Of(letters[byte]));
    if (found == vocabulary_.end()) {
      throw UserError(fmt::format(
          "cannot use {}: its vocabulary lacks the byte 0x{:02x}; a byte-level vocabulary has all 256", file, byte));
    }
    byte_ids_[byte] = found->second;
  }
}

void BytePairMerges::ReadMerges(const nlohmann::json& merges, const std::string& file) {
  merges_.reserve(merges.size());
  uint32_t rank = 0;
  for (const nlohmann::json& merge : merges) {
    const auto [left, right] = ReadPair(merge, file);
    const auto left_id = vocabulary_.find(left);
    const auto right_id = vocabulary_.find(right);
    const auto joined = vocabulary_.find(left + right);
    if (left_id == vocabulary_.end() || right_id == vocabulary_.end() || joined == vocabulary_.end()) {
      throw UserError(
          fmt::format("cannot use {}: the merge `{} {}` or its result is not in the vocabulary", file, left, right));
    }
    merges_[PairKey(left_id->second, right_id->second)] = {rank++, joined->second};
  }
}

void BytePairMerges::ReadWholeWords() {
  for (const auto& [token, id] : vocabulary_) {
    if (const auto bytes = BytesOf(token)) whole_words_[*bytes] = id;
  }
}

const BytePairMerges::Merge* BytePairMerges::Find(TokenId left, TokenId right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BytePairMerges::EncodeTo(std::string_view piece, std::vector<TokenId>& ids) const {
  if (!whole_words_.empty()) {
    const auto whole = whole_words_.find(std::string(piece));
    if (whole != whole_words_.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  std::vector<Symbol> symbols(piece.size());
  const auto count = static_cast<int32_t>(piece.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[i] = {byte_ids_[static_cast<unsigned char>(piece[i])], i - 1, i + 1 < count ? i + 1 : -1, false};
  }

  struct Candidate {
    uint32_t rank;
    int32_t left;
    TokenId joined;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto consider = [&](int32_t left) {
    if (left < 0 || symbols[left].next < 0) return;
    if (const Merge* merge = Find(symbols[left].id, symbols[symbols[left].next].id)) {
      queue.push({merge->rank, left, merge->joined});
    }
  };
  for (int32_t i = 0; i + 1 < count; ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.left];
    if (left.gone || left.next < 0) continue;
    const Merge* merge = Find(left.id, symbols[left.next].id);
    if (merge == nullptr || merge->joined != best.joined) continue;  // One of the two has changed since.
    Symbol& right = symbols[left.next];
    left.id = best.joined;
    left.next = right.next;
    right.gone = true;
    if (left.next >= 0) symbols[left.next].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  for (int32_t i = count > 0 ? 0 : -1; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace longspan::trainer
