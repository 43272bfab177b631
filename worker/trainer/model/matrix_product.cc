#include "worker/trainer/model/matrix_product.h"

#include "worker/trainer/memory/counting_allocator.h"

// Exported by LibTorch, but the wheel does not carry its header, ATen/native/mkldnn/Matmul.h:
// result = beta * result + alpha * mat1 · mat2.
namespace at::native {
TORCH_API void mkldnn_matmul(const Tensor& mat1, const Tensor& mat2, const Tensor& result, float beta, float alpha);
}

namespace longspan::trainer {
namespace {

// Multiply-adds below which making a kernel for the shape costs more than it brings.
constexpr int64_t kMultiplyAddsMin = int64_t{1} << 18;
// Rows below which a product waits for memory whatever computes it, and oneDNN's packed copy of b, as large as b
// itself, is a waste.
constexpr int64_t kRowsMin = 8;

bool ProcessorHasAvx512() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has;
#else
  return false;
#endif
}

// By rows or by columns, without gaps: others would be copied.
bool IsDense(const at::Tensor& matrix) {
  return (matrix.stride(1) == 1 && matrix.stride(0) == matrix.size(1)) ||
         (matrix.stride(0) == 1 && matrix.stride(1) == matrix.size(0));
}

bool OneDnnTakes(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out) {
  return ProcessorHasAvx512() && out.scalar_type() == at::kFloat && out.is_cpu() && a.size(0) >= kRowsMin &&
         a.size(0) * a.size(1) * b.size(1) >= kMultiplyAddsMin && IsDense(a) && IsDense(b) && out.is_contiguous();
}

}  // namespace

void MultiplyInto(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out, const ProductScale& scale) {
  if (OneDnnTakes(a, b, out)) {
    const ListedAllocation
        scratch;  // oneDNN's own, some hundred KiB; a copy of b in its layout comes out of its own heap
    at::native::mkldnn_matmul(a, b, out, static_cast<float>(scale.of_out), static_cast<float>(scale.of_product));
    return;
  }
  at::Tensor to = out;
  if (scale.of_out == 0 && scale.of_product == 1) {
    at::mm_out(to, a, b);
  } else {
    to.addmm_(a, b, scale.of_out, scale.of_product);
  }
}

}  // namespace longspan::trainer
