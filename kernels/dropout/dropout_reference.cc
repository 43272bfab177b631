#include "kernels/common/bfloat16.h"
#include "kernels/dropout/mask.h"

namespace longspan::kernels::dropout {

void ApplyReference(const Arguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = 0; row < arguments.rows; ++row) {
      const int64_t of_all = arguments.first_row + row;
      const uint64_t key = KeyOf(arguments, of_all / arguments.tokens);
      const int64_t token = arguments.first_token + of_all % arguments.tokens;
      const T* x = static_cast<const T*>(arguments.x) + row * arguments.x_stride;
      T* out = static_cast<T*>(arguments.out) + row * arguments.out_stride;
      for (int64_t i = 0; i < arguments.columns; ++i) {
        const auto element = static_cast<uint64_t>(token * arguments.columns + i);
        const bool kept = IsKept(key, element, arguments.threshold);
        out[i] = static_cast<T>(kept ? static_cast<float>(x[i]) * arguments.scale : 0.0f);
      }
    }
  });
}

}  // namespace longspan::kernels::dropout
