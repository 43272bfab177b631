#include "worker/trainer/data/byte_pair_merges.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "proto/support/check.h"
#include "worker/trainer/data/byte_letters.h"
#include "worker/trainer/data/unicode_classes.h"

namespace longspan::trainer {
namespace {

constexpr std::string_view kVisibleSpace = "\xE2\x96\x81";  // U+2581, sentencepiece's letter for a space
constexpr std::string_view kNewlineByteToken = "<0x0A>";

uint64_t PairKey(TokenId left, TokenId right) { return uint64_t{left} << 32 | right; }

size_t Hash(uint64_t key) {
  key *= 0x9E3779B97F4A7C15ull;
  return static_cast<size_t>(key ^ key >> 32);
}

// GPT-NeoX's vocabulary lacks the other bytes.
bool OccursInUtf8(size_t byte) { return byte < 0xC0 || (byte > 0xC1 && byte < 0xF5); }

bool IsOneCharacter(std::string_view text) { return !text.empty() && CharacterAt(text, 0).bytes == text.size(); }

void RefuseUnsupported(const JsonPlace& model) {
  const std::string type = model.StringOr("type", "BPE");
  if (type != "BPE") model.Fail(fmt::format("its model is {}; only BPE is supported", type));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.StringOr(key, "").empty()) model.Fail(fmt::format("its model has a {}, which is not supported", key));
  }
  const auto dropout = model.Find("dropout");
  if (dropout && !dropout->value().is_number()) dropout->FailType("a number");
  if (dropout && dropout->value().get<double>() != 0) {
    model.Fail("its model has dropout, which makes the ids random; set it to null");
  }
}

// "a b", or ["a", "b"] in newer files.
std::pair<std::string, std::string> ReadPair(const JsonPlace& merges, size_t index, bool as_text) {
  const nlohmann::json& merge = merges.value()[index];
  if (as_text && merge.is_string()) {
    const std::string text = merge.get<std::string>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  if (!as_text && merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  merges.Fail(fmt::format("{}[{}] is {}; a pair is needed, like the first merge: \"a b\" or [\"a\", \"b\"]",
                          merges.path(), index,
                          merge.is_string() ? fmt::format("\"{}\"", merge.get<std::string>()) : JsonTypeName(merge)));
}

}  // namespace

BytePairMerges BytePairMerges::Parse(const JsonPlace& model, Alphabet alphabet) {
  RefuseUnsupported(model);
  BytePairMerges result;
  result.alphabet_ = alphabet;
  result.ReadVocabulary(model.At("vocab"));
  if (alphabet == Alphabet::kBytes) {
    result.ReadBytes(model);
  } else {
    result.ReadCharacters(model);
  }
  result.ReadMerges(model.At("merges"));
  if (model.BoolOr("ignore_merges", false)) result.ReadWholeWords();
  return result;
}

void BytePairMerges::ReadVocabulary(const JsonPlace& vocabulary) {
  if (!vocabulary.value().is_object()) vocabulary.FailType("an object");
  vocabulary_.reserve(vocabulary.value().size());
  tokens_.reserve(vocabulary.value().size());
  for (const auto& [token, id] : vocabulary.value().items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > kTokenIdMax) vocabulary.At(token).Unsigned(kTokenIdMax);
    const auto entry = vocabulary_.emplace(token, id.get<TokenId>()).first;
    const auto [same, fresh] = tokens_.emplace(entry->second, &entry->first);
    if (!fresh) {
      vocabulary.Fail(fmt::format("the tokens \"{}\" and \"{}\" in {} have the same id {}", *same->second, token,
                                  vocabulary.path(), entry->second));
    }
    largest_id_ = std::max(largest_id_, entry->second);
  }
}

void BytePairMerges::ReadBytes(const JsonPlace& model) {
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto found = vocabulary_.find(ByteLetterText(static_cast<uint8_t>(byte)));
    if (found != vocabulary_.end()) {
      byte_ids_[byte] = found->second;
    } else if (OccursInUtf8(byte)) {
      model.Fail(fmt::format("its vocabulary lacks the byte 0x{:02x}; a byte-level vocabulary has all of UTF-8", byte));
    }
  }
}

void BytePairMerges::ReadCharacters(const JsonPlace& model) {
  for (const auto& [token, id] : vocabulary_) {
    if (IsOneCharacter(token)) characters_[CharacterAt(token, 0).code_point] = id;
  }
  if (characters_.empty()) model.Fail("its vocabulary has no single character, so no text could be encoded");
  byte_fallback_ = model.BoolOr("byte_fallback", false);
  fuse_unknown_ = model.BoolOr("fuse_unk", false);
  for (size_t byte = 0; byte < 256 && byte_fallback_; ++byte) {
    const auto found = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
    if (found != vocabulary_.end()) byte_ids_[byte] = found->second;
  }
  const auto unknown = model.Find("unk_token");
  if (!unknown) return;
  const auto found = vocabulary_.find(unknown->String());
  if (found == vocabulary_.end()) {
    unknown->Fail(fmt::format("{} is \"{}\", which the vocabulary lacks", unknown->path(), unknown->String()));
  }
  unknown_ = found->second;
}

void BytePairMerges::ReadMerges(const JsonPlace& merges) {
  if (!merges.value().is_array()) merges.FailType("a list");
  // Known characters on both sides of a cut: an unknown token cannot reach over it.
  cuts_before_spaces_ =
      alphabet_ == Alphabet::kCharacters && characters_.contains(CharacterAt(kVisibleSpace, 0).code_point);
  never_joins_letter_newline_ = true;
  for (char c = 'A'; c <= 'z' && alphabet_ == Alphabet::kCharacters; ++c) {
    if (IsAsciiLetter(c) && !characters_.contains(static_cast<uint32_t>(c))) never_joins_letter_newline_ = false;
  }
  const size_t count = merges.value().size();
  merges_.resize(std::bit_ceil(std::max<size_t>(2 * count, 16)));
  const bool as_text = count > 0 && merges.value()[0].is_string();
  for (size_t index = 0; index < count; ++index) {
    // The first line of a merges.txt, which older files carry along.
    if (as_text && merges.value()[index].is_string() &&
        merges.value()[index].get_ref<const std::string&>().starts_with("#version")) {
      continue;
    }
    const auto [left, right] = ReadPair(merges, index, as_text);
    ReadMerge(merges, index, left, right);
  }
}

TokenId BytePairMerges::IdOfMergePart(const JsonPlace& merges, size_t index, const std::string& part) const {
  const auto found = vocabulary_.find(part);
  if (found != vocabulary_.end() && !part.empty()) return found->second;
  merges.Fail(fmt::format("{}[{}] needs the token \"{}\", which is not in the vocabulary", merges.path(), index, part));
}

void BytePairMerges::ReadMerge(const JsonPlace& merges, size_t index, std::string_view left, std::string_view right) {
  const TokenId left_id = IdOfMergePart(merges, index, std::string(left));
  const TokenId right_id = IdOfMergePart(merges, index, std::string(right));
  const TokenId joined = IdOfMergePart(merges, index, std::string(left) + std::string(right));
  PutMerge({PairKey(left_id, right_id), static_cast<uint32_t>(index), joined});
  if (right.starts_with(kVisibleSpace) && !left.ends_with(kVisibleSpace)) cuts_before_spaces_ = false;
  const std::string newline = alphabet_ == Alphabet::kBytes ? ByteLetterText('\n') : "\n";
  if (IsAsciiLetter(left.back()) && (right.starts_with(newline) || right.starts_with(kNewlineByteToken))) {
    never_joins_letter_newline_ = false;
  }
}

void BytePairMerges::PutMerge(const Merge& merge) {
  size_t slot = Hash(merge.pair) & (merges_.size() - 1);
  while (merges_[slot].pair != kNoPair && merges_[slot].pair != merge.pair) slot = (slot + 1) & (merges_.size() - 1);
  merges_[slot] = merge;  // Of a pair that stands twice the last counts.
}

const BytePairMerges::Merge* BytePairMerges::FindMerge(TokenId left, TokenId right) const {
  const uint64_t pair = PairKey(left, right);
  for (size_t slot = Hash(pair) & (merges_.size() - 1);; slot = (slot + 1) & (merges_.size() - 1)) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    if (merges_[slot].pair == kNoPair) return nullptr;
  }
}

void BytePairMerges::ReadWholeWords() {
  // A piece that is a token as a whole is so only uncut.
  cuts_before_spaces_ = false;
  never_joins_letter_newline_ = false;
  for (const auto& [token, id] : vocabulary_) {
    if (alphabet_ == Alphabet::kCharacters) {
      whole_words_[token] = id;
    } else if (const auto bytes = BytesOfLetters(token)) {
      whole_words_[*bytes] = id;
    }
  }
}

const std::string* BytePairMerges::Find(TokenId id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : found->second;
}

size_t BytePairMerges::EndOfPart(std::string_view piece, size_t begin) const {
  if (!cuts_before_spaces_) return piece.size();
  size_t at = begin;
  while (piece.substr(at).starts_with(kVisibleSpace)) at += kVisibleSpace.size();
  const size_t next = piece.find(kVisibleSpace, at);
  return next == std::string_view::npos ? piece.size() : next;
}

void BytePairMerges::AppendBytes(std::string_view piece, Scratch& scratch) const {
  for (const char c : piece) scratch.symbols.push_back({byte_ids_[static_cast<unsigned char>(c)].value(), 0, 0, false});
}

// An unknown token is held back until a known character follows, so that unknown characters in a row can become one.
// Bytes do not end such a row, as in the package.
void BytePairMerges::AppendCharacters(std::string_view piece, Scratch& scratch) const {
  bool held_back = false;
  const auto push = [&scratch](TokenId id) { scratch.symbols.push_back({id, 0, 0, false}); };
  for (size_t at = 0; at < piece.size();) {
    const Character c = CharacterAt(piece, at);
    const std::string_view text = piece.substr(at, c.bytes);
    at += c.bytes;
    if (const auto known = characters_.find(c.code_point); known != characters_.end()) {
      if (held_back) push(*unknown_);
      held_back = false;
      push(known->second);
      continue;
    }
    const auto byte_id = [this](char byte) { return byte_ids_[static_cast<unsigned char>(byte)]; };
    if (byte_fallback_ && std::all_of(text.begin(), text.end(), [&](char b) { return byte_id(b).has_value(); })) {
      for (const char byte : text) push(*byte_id(byte));
      continue;
    }
    if (!unknown_) continue;
    if (held_back && !fuse_unknown_) push(*unknown_);
    held_back = true;
  }
  if (held_back) push(*unknown_);
}

namespace {

// The heap's order: the lowest rank on top, of equals the leftmost.
struct Later {
  bool operator()(const BytePairMerges::Scratch::Candidate& a, const BytePairMerges::Scratch::Candidate& b) const {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
  }
};

}  // namespace

void BytePairMerges::Consider(int32_t left, Scratch& scratch) const {
  const std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  if (left < 0 || symbols[left].next < 0) return;
  if (const Merge* merge = FindMerge(symbols[left].id, symbols[symbols[left].next].id)) {
    scratch.heap.push_back({merge->rank, left, merge->joined});
    std::push_heap(scratch.heap.begin(), scratch.heap.end(), Later());
  }
}

// The symbols are a doubly linked list in an array: joining two is O(1), and a candidate whose symbols changed is
// recognised.
void BytePairMerges::MergeAll(Scratch& scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < count ? i + 1 : -1;
  }
  scratch.heap.clear();
  for (int32_t i = 0; i + 1 < count; ++i) Consider(i, scratch);
  while (!scratch.heap.empty()) {
    const Scratch::Candidate best = scratch.heap.front();
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), Later());
    scratch.heap.pop_back();
    Scratch::Symbol& left = symbols[best.left];
    if (left.gone || left.next < 0) continue;
    const Merge* merge = FindMerge(left.id, symbols[left.next].id);
    if (merge == nullptr || merge->joined != best.joined) continue;  // One of the two has changed since.
    Scratch::Symbol& right = symbols[left.next];
    left.id = best.joined;
    left.next = right.next;
    right.gone = true;
    if (left.next >= 0) symbols[left.next].previous = best.left;
    Consider(left.previous, scratch);
    Consider(best.left, scratch);
  }
}

void BytePairMerges::EncodeTo(std::string_view piece, Scratch& scratch, std::vector<TokenId>& ids) const {
  CHECK_LT(piece.size(), size_t{1} << 31);
  if (!whole_words_.empty()) {
    const auto whole = whole_words_.find(std::string(piece));
    if (whole != whole_words_.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  scratch.symbols.clear();
  if (alphabet_ == Alphabet::kBytes) {
    AppendBytes(piece, scratch);
  } else {
    AppendCharacters(piece, scratch);
  }
  if (scratch.symbols.empty()) return;
  MergeAll(scratch);
  for (int32_t i = 0; i >= 0; i = scratch.symbols[i].next) ids.push_back(scratch.symbols[i].id);
}

}  // namespace longspan::trainer
