// Remembers the ids of short words, which makes encoding of natural text several times faster. A hash table with open
// addressing; bounded in words and bytes: when full it starts afresh. One thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

class WordCache {
 public:
  static constexpr size_t kWordBytesMax = 64;           // longer ones hardly ever come again
  static constexpr size_t kWordsMax = size_t{1} << 17;  // at most 50 MB with their ids; for natural text 12

  // Appends the ids of `word`: remembered ones, or those that encode(ids) appends.
  template <typename Encode>
  void EncodeTo(std::string_view word, std::vector<TokenId>& ids, Encode encode) {
    if (word.size() > kWordBytesMax) {
      encode(ids);
      return;
    }
    const size_t hash = std::hash<std::string_view>{}(word);
    Slot* slot = Find(word, hash);
    if (slot->used) {
      const TokenId* begin = ids_.data() + slot->ids_begin;
      ids.insert(ids.end(), begin, begin + slot->ids_count);
      return;
    }
    const size_t before = ids.size();
    encode(ids);
    if (2 * words_ >= slots_.size()) {
      Grow();
      slot = Find(word, hash);
    }
    *slot = {hash,
             static_cast<uint32_t>(text_.size()),
             static_cast<uint32_t>(ids_.size()),
             static_cast<uint16_t>(ids.size() - before),
             static_cast<uint8_t>(word.size()),
             true};
    text_.append(word);
    ids_.insert(ids_.end(), ids.begin() + static_cast<ptrdiff_t>(before), ids.end());
    ++words_;
  }

 private:
  struct Slot {
    size_t hash = 0;
    uint32_t text_begin = 0;
    uint32_t ids_begin = 0;
    uint16_t ids_count = 0;
    uint8_t text_bytes = 0;
    bool used = false;
  };

  // The word's slot, or the free one where it belongs.
  Slot* Find(std::string_view word, size_t hash) {
    for (size_t at = hash & (slots_.size() - 1);; at = (at + 1) & (slots_.size() - 1)) {
      Slot& slot = slots_[at];
      if (!slot.used) return &slot;
      if (slot.hash == hash && std::string_view(text_).substr(slot.text_begin, slot.text_bytes) == word) return &slot;
    }
  }

  // Doubles the table; at its largest, forgets everything.
  void Grow() {
    if (words_ >= kWordsMax) {
      slots_.assign(slots_.size(), {});
      text_.clear();
      ids_.clear();
      words_ = 0;
      return;
    }
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.used) *FindFree(slot.hash) = slot;
    }
  }

  Slot* FindFree(size_t hash) {
    size_t at = hash & (slots_.size() - 1);
    while (slots_[at].used) at = (at + 1) & (slots_.size() - 1);
    return &slots_[at];
  }

  std::vector<Slot> slots_ = std::vector<Slot>(256);
  std::string text_;
  std::vector<TokenId> ids_;
  size_t words_ = 0;
};

}  // namespace longspan::trainer
