// The types that kernels read and write.
#pragma once

#include <cstdint>

namespace longspan::kernels {

enum class ElementType { kFloat32, kBfloat16 };

inline int64_t BytesOf(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

}  // namespace longspan::kernels
