#include "kernels/common/bfloat16.h"
#include "kernels/embedding_gradient/embedding_gradient.h"

namespace longspan::kernels::embedding_gradient {

void AddReference(const Arguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t at = 0; at < arguments.rows; ++at) {
      const T* x = static_cast<const T*>(arguments.x) + arguments.order[at] * arguments.row_stride;
      float* to = arguments.table + arguments.sorted_ids[at] * arguments.table_stride;
      for (int64_t i = 0; i < arguments.columns; ++i) to[i] += static_cast<float>(x[i]);
    }
  });
}

}  // namespace longspan::kernels::embedding_gradient
