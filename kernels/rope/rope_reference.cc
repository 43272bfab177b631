#include "kernels/common/bfloat16.h"
#include "kernels/rope/rope.h"

namespace longspan::kernels::rope {

void RotateReference(const Arguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = 0; row < arguments.rows; ++row) {
      const int64_t position = arguments.positions != nullptr ? arguments.positions[row] : row % arguments.tokens;
      const float* cosine = arguments.cosine + position * arguments.table_stride;
      const float* sine = arguments.sine + position * arguments.table_stride;
      for (int64_t head = 0; head < arguments.heads; ++head) {
        T* low = static_cast<T*>(arguments.data) + row * arguments.row_stride + head * arguments.head_stride;
        T* high = low + arguments.half;
        for (int64_t i = 0; i < arguments.half; ++i) {
          const auto a = static_cast<float>(low[i]), b = static_cast<float>(high[i]);
          const float s = arguments.inverse ? -sine[i] : sine[i];
          low[i] = static_cast<T>(a * cosine[i] - b * s);
          high[i] = static_cast<T>(b * cosine[i] + a * s);
        }
      }
    }
  });
}

}  // namespace longspan::kernels::rope
