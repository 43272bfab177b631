#include "worker/trainer/data/sentencepiece_charsmap.h"

#include <cstdint>
#include <cstring>

namespace longspan::trainer {
namespace {

constexpr size_t kUnitBytes = 4;
constexpr size_t kBlockUnits = 256;  // a step goes to any unit of a block, by the next byte of the text

// 32 bits, as Darts packs them.
struct Unit {
  uint32_t bits;
  bool is_value() const { return bits >> 31 != 0; }
  uint32_t value() const { return bits & 0x7FFFFFFF; }
  bool has_value() const { return (bits >> 8 & 1) != 0; }
  uint32_t offset() const { return (bits >> 10) << ((bits & (1u << 9)) >> 6); }
};

uint32_t ReadNumber(std::string_view bytes, size_t index) {
  uint32_t number = 0;
  std::memcpy(&number, bytes.data() + index * kUnitBytes, kUnitBytes);
  return number;
}

}  // namespace

bool StaysInside(std::string_view charsmap) {
  if (charsmap.empty()) return true;
  if (charsmap.size() < kUnitBytes) return false;
  const size_t array_bytes = ReadNumber(charsmap, 0);
  charsmap.remove_prefix(kUnitBytes);
  if (array_bytes == 0 || array_bytes >= charsmap.size() || array_bytes % (kBlockUnits * kUnitBytes) != 0) return false;
  const std::string_view texts = charsmap.substr(array_bytes);
  if (texts.back() != '\0') return false;
  const size_t units = array_bytes / kUnitBytes;
  for (size_t index = 0; index < units; ++index) {
    const Unit unit{ReadNumber(charsmap, index)};
    if (unit.is_value() && index > 0) continue;  // no step ends here
    const size_t next = index ^ unit.offset();
    if (next >= units) return false;  // whole blocks: then all units of the block are inside
    if (unit.has_value() && Unit{ReadNumber(charsmap, next)}.value() >= texts.size()) return false;
  }
  return true;
}

}  // namespace longspan::trainer
