#include "worker/trainer/data/sentencepiece_settings.h"

#include <fmt/format.h>

#include <cstdint>
#include <string_view>

#include "worker/trainer/data/sentencepiece_charsmap.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

// Field numbers of sentencepiece_model.proto.
constexpr uint64_t kTrainerSpec = 2;
constexpr uint64_t kNormalizerSpec = 3;
constexpr uint64_t kTreatWhitespaceAsSuffix = 24;  // of TrainerSpec
constexpr uint64_t kPrecompiledCharsmap = 2;       // of NormalizerSpec
constexpr uint64_t kAddDummyPrefix = 3;
constexpr uint64_t kRemoveExtraWhitespaces = 4;
constexpr uint64_t kEscapeWhitespaces = 5;

// One field after another of a message in protobuf's wire format.
class Fields {
 public:
  Fields(std::string_view message, size_t offset, const std::string& file)
      : message_(message), offset_(offset), file_(file) {}

  // Goes to the next field; false at the end.
  bool Next() {
    if (at_ == message_.size()) return false;
    const uint64_t key = Varint();
    number = key >> 3;
    varint = 0;
    bytes = {};
    switch (key & 7) {
      case 0:
        varint = Varint();
        return true;
      case 1:
        Take(8);
        return true;
      case 2:
        bytes_offset = 0;  // set below, behind the length
        bytes = Take(Varint());
        bytes_offset = offset_ + at_ - bytes.size();
        return true;
      case 5:
        Take(4);
        return true;
      default:
        Fail("a field of an unknown kind");
    }
  }

  uint64_t number = 0;
  uint64_t varint = 0;
  std::string_view bytes;
  size_t bytes_offset = 0;  // of `bytes` in the file

  [[noreturn]] void Fail(const char* what) const {
    throw UserError(
        fmt::format("cannot use {}: it is not a sentencepiece model: {} at byte {}", file_, what, offset_ + at_));
  }

 private:
  std::string_view Take(uint64_t count) {
    if (count > message_.size() - at_) Fail("it ends in the middle of a field");
    const std::string_view taken = message_.substr(at_, count);
    at_ += count;
    return taken;
  }
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint64_t byte = static_cast<unsigned char>(Take(1)[0]);
      value |= (byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    Fail("a number of more than 64 bits");
  }

  std::string_view message_;
  size_t offset_;
  const std::string& file_;
  size_t at_ = 0;
};

void ReadNormalizerSpec(Fields fields, SentencePieceSettings& settings) {
  while (fields.Next()) {
    if (fields.number == kPrecompiledCharsmap && !StaysInside(fields.bytes)) {
      fields.Fail("precompiled_charsmap points outside of itself; it ends");
    }
    if (fields.number == kAddDummyPrefix) settings.add_dummy_prefix = fields.varint != 0;
    if (fields.number == kRemoveExtraWhitespaces) settings.remove_extra_whitespaces = fields.varint != 0;
    if (fields.number == kEscapeWhitespaces) settings.escape_whitespaces = fields.varint != 0;
  }
}

}  // namespace

SentencePieceSettings ReadSentencePieceSettings(const std::string& model, const std::string& file) {
  SentencePieceSettings settings;
  for (Fields fields(model, 0, file); fields.Next();) {
    if (fields.number == kNormalizerSpec) ReadNormalizerSpec({fields.bytes, fields.bytes_offset, file}, settings);
    if (fields.number != kTrainerSpec) continue;
    for (Fields spec(fields.bytes, fields.bytes_offset, file); spec.Next();) {
      if (spec.number == kTreatWhitespaceAsSuffix) settings.treat_whitespace_as_suffix = spec.varint != 0;
    }
  }
  return settings;
}

}  // namespace longspan::trainer
