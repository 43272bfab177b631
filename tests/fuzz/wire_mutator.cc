#include "tests/fuzz/wire_mutator.h"

#include <algorithm>
#include <optional>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

namespace longspan::fuzz {
namespace {

constexpr uint64_t kVarint = 0, kEightBytes = 1, kBytes = 2, kFourBytes = 5;

struct Field {
  uint64_t key = 0;      // number * 8 + kind
  uint64_t varint = 0;   // of kind 0
  std::string contents;  // of the others
};

std::optional<uint64_t> TakeVarint(std::string_view& text) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && !text.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(text.front());
    text.remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

void AppendVarint(uint64_t value, std::string& out) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

std::optional<std::vector<Field>> Parse(std::string_view text) {
  std::vector<Field> fields;
  while (!text.empty()) {
    const std::optional<uint64_t> key = TakeVarint(text);
    if (!key) return std::nullopt;
    Field field;
    field.key = *key;
    const uint64_t kind = *key & 7;
    std::optional<uint64_t> length;
    if (kind == kVarint) {
      const std::optional<uint64_t> value = TakeVarint(text);
      if (!value) return std::nullopt;
      field.varint = *value;
      length = 0;
    }
    if (kind == kEightBytes) length = 8;
    if (kind == kFourBytes) length = 4;
    if (kind == kBytes) length = TakeVarint(text);
    if (!length || *length > text.size()) return std::nullopt;
    field.contents = text.substr(0, *length);
    text.remove_prefix(*length);
    fields.push_back(std::move(field));
  }
  return fields;
}

std::string Serialized(const std::vector<Field>& fields) {
  std::string out;
  for (const Field& field : fields) {
    AppendVarint(field.key, out);
    if ((field.key & 7) == kVarint) AppendVarint(field.varint, out);
    if ((field.key & 7) == kBytes) AppendVarint(field.contents.size(), out);
    out += field.contents;
  }
  return out;
}

class Mutator {
 public:
  Mutator(unsigned seed, MutateBytes mutate_bytes) : random_(seed), mutate_bytes_(mutate_bytes) {}

  void Mutate(std::vector<Field>& fields) {
    if (fields.empty()) return;
    const auto one = static_cast<ptrdiff_t>(Below(fields.size())), other = static_cast<ptrdiff_t>(Below(fields.size()));
    switch (Below(8)) {
      case 0:
        fields.erase(fields.begin() + one);
        return;
      case 1:
        fields.push_back(Field(fields[static_cast<size_t>(one)]));
        return;
      case 2:
        std::swap(fields[static_cast<size_t>(one)], fields[static_cast<size_t>(other)]);
        return;
      case 3:
        fields[static_cast<size_t>(one)].key ^= uint64_t{8} << Below(6);
        return;
      default:
        MutateValue(fields[static_cast<size_t>(one)]);
    }
  }

 private:
  size_t Below(size_t count) { return random_() % count; }

  void MutateValue(Field& field) {
    if ((field.key & 7) == kVarint) {
      static constexpr uint64_t kValues[] = {0, 1, 2, 3, 4, 5, 6, 7, 255, 1u << 31, ~uint64_t{0}};
      field.varint = kValues[Below(std::size(kValues))];
      return;
    }
    if ((field.key & 7) == kBytes && Below(4) > 0) {
      if (auto inner = Parse(field.contents); inner && !inner->empty()) {
        Mutate(*inner);
        field.contents = Serialized(*inner);
        return;
      }
    }
    const size_t size = field.contents.size();
    const size_t size_max = (field.key & 7) == kBytes ? size + 64 : size;
    if (size_max == 0) return;
    field.contents.resize(size_max);
    auto* bytes = reinterpret_cast<uint8_t*>(field.contents.data());
    const size_t mutated = mutate_bytes_(bytes, size, size_max);
    field.contents.resize((field.key & 7) == kBytes ? mutated : size);
  }

  std::minstd_rand random_;
  MutateBytes mutate_bytes_;
};

}  // namespace

std::string MutateWireText(const std::string& message, size_t bytes_max, unsigned seed, MutateBytes mutate_bytes) {
  auto fields = Parse(message);
  if (!fields) return "";
  Mutator(seed, mutate_bytes).Mutate(*fields);
  std::string mutated = Serialized(*fields);
  return mutated.size() > bytes_max ? "" : mutated;
}

}  // namespace longspan::fuzz
