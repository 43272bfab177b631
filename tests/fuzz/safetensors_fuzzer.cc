// A weights file: whatever its bytes say, it opens or is refused with UserError; every tensor it lists lies inside.
#include <ATen/ATen.h>

#include <cstring>

#include "tests/fuzz/json_mutator.h"
#include "tests/fuzz/memory_file.h"
#include "worker/trainer/model/safetensors.h"

namespace {

constexpr size_t kLengthBytes = 8;

// Length, header, data.
std::string HeaderOf(const uint8_t* data, size_t size) {
  uint64_t length = 0;
  if (size < kLengthBytes) return "";
  std::memcpy(&length, data, kLengthBytes);
  if (length > size - kLengthBytes) return "";
  return {reinterpret_cast<const char*>(data) + kLengthBytes, static_cast<size_t>(length)};
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t size_max);

// Half of the mutations change the header as JSON and keep its length right, so that they reach what lies behind it.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t size_max, unsigned seed) {
  const std::string header = seed % 2 == 0 ? HeaderOf(data, size) : "";
  const std::string mutated =
      header.empty() ? "" : longspan::fuzz::MutateJsonText(header, size_max - kLengthBytes, seed / 2);
  if (mutated.empty()) return LLVMFuzzerMutate(data, size, size_max);
  const std::string values(reinterpret_cast<const char*>(data) + kLengthBytes + header.size(),
                           size - kLengthBytes - header.size());
  const uint64_t length = mutated.size();
  std::string all(reinterpret_cast<const char*>(&length), kLengthBytes);
  all += mutated + values;
  all.resize(std::min(all.size(), size_max));
  std::memcpy(data, all.data(), all.size());
  return all.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const longspan::fuzz::MemoryFile file({reinterpret_cast<const char*>(data), size});
  try {
    const auto opened = longspan::trainer::SafetensorsFile::Open(file.path());
    for (const auto& [name, entry] : opened.entries()) {
      const at::Tensor value = opened.View(name);
      if (static_cast<uint64_t>(value.nbytes()) != entry.bytes) std::abort();
      if (value.numel() > 0) value.to(at::kDouble).sum().item<double>();  // reads every byte
    }
  } catch (const longspan::trainer::UserError&) {
  }
  return 0;
}
