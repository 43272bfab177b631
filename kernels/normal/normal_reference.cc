#include "kernels/common/bfloat16.h"
#include "kernels/normal/draw.h"
#include "kernels/normal/normal.h"

namespace longspan::kernels::normal {

void DrawReference(const Arguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    T* out = static_cast<T*>(arguments.out);
    for (int64_t i = 0; i < arguments.elements; ++i) {
      out[i] = static_cast<T>(Value(arguments.key, arguments.first + i, arguments.deviation));
    }
  });
}

}  // namespace longspan::kernels::normal
