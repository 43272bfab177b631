#include "worker/trainer/quantized/fp8_weight.h"

#include "kernels/fp8_rows/fp8_rows.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/memory/counting_allocator.h"
#include "worker/trainer/model/row_parallel.h"

namespace longspan::trainer {
namespace {

namespace fp8_rows = kernels::fp8_rows;

Fp8Rows RowsOf(const at::Tensor& matrix) {
  const Fp8Rows rows{at::empty(matrix.sizes(), matrix.options().dtype(at::kFloat8_e4m3fn)),
                     at::empty({matrix.size(0)}, matrix.options().dtype(at::kFloat))};
  QuantizeRows(matrix, rows);
  return rows;
}

int64_t BytesOf(const Fp8Rows& rows) { return rows.codes.numel() + 4 * rows.scales.numel(); }

void MultiplyOnHost(const Fp8Rows& left, const Fp8Rows& right, const at::Tensor& out) {
  const ListedAllocation values_and_product;
  at::Tensor product = at::mm(left.codes.to(at::kFloat), right.codes.to(at::kFloat).t());
  product.mul_(left.scales.unsqueeze(1)).mul_(right.scales.unsqueeze(0));
  at::Tensor(out).copy_(product);
}

}  // namespace

int64_t Fp8Weight::bytes() const { return BytesOf(by_output) + BytesOf(by_input); }

Fp8Weight QuantizeFp8(const at::Tensor& weight, const std::string& name) {
  TORCH_CHECK(weight.dim() == 2, "a weight to quantize must be a matrix, not ", weight.sizes());
  Fp8Weight result{RowsOf(weight), RowsOf(weight.t().contiguous())};
  if (!result.by_output.scales.isfinite().all().item<bool>()) {
    throw UserError("cannot quantize " + name + ": a value is not finite");
  }
  return result;
}

void QuantizeRows(const at::Tensor& x, const Fp8Rows& to) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1 && to.codes.sizes() == x.sizes() && to.codes.is_contiguous() &&
                  to.scales.is_contiguous() && to.scales.numel() == x.size(0),
              "8-bit rows of ", x.sizes(), " into ", to.codes.sizes(), " with ", to.scales.numel(), " scales");
  if (x.is_cuda()) {
    gpu::QuantizeFp8Rows(x, to.codes, to.scales);
    return;
  }
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "8-bit rows of ", x.scalar_type());
  const auto type = x.scalar_type() == at::kFloat ? kernels::ElementType::kFloat32 : kernels::ElementType::kBfloat16;
  const auto* from = static_cast<const char*>(x.const_data_ptr());
  auto* codes = static_cast<uint8_t*>(to.codes.data_ptr());
  auto* scales = to.scales.data_ptr<float>();
  ForRowRanges(x.size(0), 16, [&](int64_t begin, int64_t end) {
    fp8_rows::QuantizeReference({type, end - begin, x.size(1), from + begin * x.stride(0) * kernels::BytesOf(type),
                                 x.stride(0), codes + begin * x.size(1), x.size(1), scales + begin});
  });
}

void MultiplyFp8(const Fp8Rows& left, const Fp8Rows& right, const at::Tensor& out) {
  TORCH_CHECK(out.size(0) == left.codes.size(0) && out.size(1) == right.codes.size(0) && out.is_contiguous() &&
                  left.codes.size(1) == right.codes.size(1),
              "an 8-bit product of ", left.codes.sizes(), " and ", right.codes.sizes(), " transposed into ",
              out.sizes());
  if (out.is_cpu()) {
    MultiplyOnHost(left, right, out);
    return;
  }
  at::Tensor to = out;
  at::_scaled_mm_out(to, left.codes, right.codes.t(), left.scales.unsqueeze(1), right.scales.unsqueeze(0),
                     /*bias=*/{}, /*scale_result=*/{}, out.scalar_type(), /*use_fast_accum=*/false);
}

}  // namespace longspan::trainer
