// Mutations of protobuf messages in wire format, without a schema: a field goes, comes twice, changes its place, its
// number or its value, and what stands around it stays a message. Deterministic in the seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace longspan::fuzz {

using MutateBytes = size_t (*)(uint8_t* data, size_t size, size_t size_max);

// Mutates `message`, or gives an empty string when it is none or the result has more than `bytes_max` bytes.
// `mutate_bytes` changes the value of a field that holds bytes.
std::string MutateWireText(const std::string& message, size_t bytes_max, unsigned seed, MutateBytes mutate_bytes);

}  // namespace longspan::fuzz
