#include "worker/trainer/gpu/gpu_kernels.h"

#include <ATen/cuda/CUDAContext.h>

#include <cstring>

#include "kernels/adamw/adamw_cuda.h"
#include "kernels/cross_entropy/cross_entropy_cuda.h"
#include "kernels/dropout/dropout_cuda.h"
#include "kernels/embedding_gradient/embedding_gradient_cuda.h"
#include "kernels/fp8_rows/fp8_rows_cuda.h"
#include "kernels/lora_products/lora_products_cuda.h"
#include "kernels/nf4/nf4_cuda.h"
#include "kernels/norm/norm_cuda.h"
#include "kernels/normal/normal_cuda.h"
#include "kernels/rope/rope_cuda.h"
#include "kernels/swiglu/swiglu_cuda.h"
#include "kernels/tensor_sums/tensor_sums_cuda.h"

namespace longspan::trainer::gpu {
namespace {

using kernels::ElementType;
namespace norm = kernels::norm;
namespace lora = kernels::lora_products;

// Partial sums over rows: a few blocks for each multiprocessor of the largest GPUs.
constexpr int64_t kParts = 528;

cudaStream_t Stream() { return at::cuda::getCurrentCUDAStream(); }

void Check(cudaError_t status, const char* what) {
  TORCH_CHECK(status == cudaSuccess, what, " on the GPU: ", cudaGetErrorString(status));
}

ElementType TypeOf(const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kFloat) return ElementType::kFloat32;
  TORCH_CHECK(tensor.scalar_type() == at::kBFloat16, "GPU kernels know float32 and bfloat16, not ",
              tensor.scalar_type());
  return ElementType::kBfloat16;
}

float* Floats(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr<float>() : nullptr; }
void* Data(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

// (N, H, D) or (N, d), last stride 1.
norm::View ViewOf(const at::Tensor& rows) {
  TORCH_CHECK(rows.stride(-1) == 1, "GPU kernels want a last stride of 1");
  return {rows.data_ptr(), rows.stride(0), rows.dim() == 3 ? rows.stride(1) : rows.size(1)};
}
norm::Vectors VectorsOf(const at::Tensor& rows) {
  return {rows.size(0), rows.dim() == 3 ? rows.size(1) : 1, rows.size(-1)};
}

// Copies a list of plain structs to the GPU, for kernels that take many tensors at once.
template <typename T>
at::Tensor Upload(const std::vector<T>& list) {
  const auto bytes = static_cast<int64_t>(list.size() * sizeof(T));
  at::Tensor host = at::empty({bytes}, at::TensorOptions(at::kByte).pinned_memory(true));
  std::memcpy(host.data_ptr(), list.data(), list.size() * sizeof(T));
  return host.to(at::kCUDA, /*non_blocking=*/true);  // pinned blocks outlive their copies
}

struct NormInputs {
  norm::Kind kind;
  const at::Tensor& x;
  const at::Tensor& weight;
  const at::Tensor& statistics;
  at::Tensor added{};  // to x first; undefined: nothing
};

void NormForward(const NormInputs& inputs, const at::Tensor& bias, double epsilon, const at::Tensor& out) {
  norm::ForwardArguments arguments;
  arguments.type = TypeOf(inputs.x);
  arguments.kind = inputs.kind;
  arguments.vectors = VectorsOf(inputs.x);
  arguments.x = ViewOf(inputs.x);
  if (inputs.added.defined()) arguments.added = ViewOf(inputs.added);
  arguments.weight = Data(inputs.weight);
  arguments.bias = Data(bias);
  arguments.epsilon = static_cast<float>(epsilon);
  arguments.out = ViewOf(out);
  arguments.statistics = Floats(inputs.statistics);
  // LayerNorm's are pairs; RmsNorm's of whole rows lie in the first of a tensor's values.
  if (inputs.x.dim() == 3 && inputs.statistics.defined()) arguments.statistics_stride = inputs.statistics.stride(0);
  Check(norm::Forward(arguments, Stream()), "a norm");
}

void NormBackward(const NormInputs& inputs, const at::Tensor& out_gradient, const NormGradients& gradients) {
  norm::BackwardArguments arguments;
  arguments.type = TypeOf(inputs.x);
  arguments.kind = inputs.kind;
  arguments.vectors = VectorsOf(inputs.x);
  arguments.x = ViewOf(inputs.x);
  arguments.weight = Data(inputs.weight);
  arguments.statistics = Floats(inputs.statistics);
  if (inputs.x.dim() == 3) arguments.statistics_stride = inputs.statistics.stride(0);
  arguments.out_gradient = ViewOf(out_gradient);
  arguments.x_gradient = ViewOf(gradients.x);
  arguments.adds = gradients.adds;
  at::Tensor sums = gradients.scratch;
  if (gradients.weight.defined()) {
    const int64_t columns = inputs.x.size(-1) * (inputs.kind == norm::Kind::kLayer ? 2 : 1);
    if (!sums.defined()) sums = at::empty({kParts, columns}, inputs.x.options().dtype(at::kFloat));
    TORCH_CHECK(sums.is_contiguous() && sums.size(1) == columns, "sums of ", columns, " columns in ", sums.sizes());
    arguments.parts = sums.size(0);
    arguments.sums = Floats(sums);
    arguments.weight_gradient = Floats(gradients.weight);
    arguments.bias_gradient = Floats(gradients.bias);
  }
  Check(norm::Backward(arguments, Stream()), "the gradient of a norm");
}

}  // namespace

void HeadRmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon, const at::Tensor& out,
                 const at::Tensor& inverse_rms) {
  NormForward({norm::Kind::kRms, x, weight, inverse_rms}, {}, epsilon, out);
}

void HeadRmsNormBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& inverse_rms,
                         const at::Tensor& out_gradient, const NormGradients& gradients) {
  NormBackward({norm::Kind::kRms, x, weight, inverse_rms}, out_gradient, gradients);
}

void LayerNorm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double epsilon,
               const at::Tensor& out, const at::Tensor& statistics) {
  NormForward({norm::Kind::kLayer, x, weight, statistics}, bias, epsilon, out);
}

void LayerNormBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& statistics,
                       const at::Tensor& out_gradient, const NormGradients& gradients) {
  NormBackward({norm::Kind::kLayer, x, weight, statistics}, out_gradient, gradients);
}

void AddNorm(const at::Tensor& x, const at::Tensor& added, const NormWeights& weights, const at::Tensor& out,
             const at::Tensor& statistics) {
  TORCH_CHECK(x.dim() == 2 && added.sizes() == x.sizes() && out.sizes() == x.sizes() &&
                  added.scalar_type() == x.scalar_type() && out.scalar_type() == x.scalar_type(),
              "a norm of ", x.sizes(), " and ", added.sizes(), " into ", out.sizes());
  const norm::Kind kind = weights.bias.defined() ? norm::Kind::kLayer : norm::Kind::kRms;
  NormForward({kind, x, weights.weight, statistics, added}, weights.bias, weights.epsilon, out);
}

void ApplyRotation(const at::Tensor& rows, const RotationTables& tables, bool inverse) {
  TORCH_CHECK(rows.dim() == 3 && rows.stride(2) == 1, "a rotation of ", rows.sizes());
  kernels::rope::Arguments arguments;
  arguments.type = TypeOf(rows);
  arguments.rows = rows.size(0);
  arguments.heads = rows.size(1);
  arguments.half = tables.cosine.size(1);
  arguments.data = rows.data_ptr();
  arguments.row_stride = rows.stride(0);
  arguments.head_stride = rows.stride(1);
  arguments.cosine = Floats(tables.cosine);
  arguments.sine = Floats(tables.sine);
  arguments.table_stride = tables.cosine.stride(0);
  arguments.tokens = tables.tokens;
  if (tables.positions.defined()) arguments.positions = tables.positions.data_ptr<int64_t>();
  arguments.inverse = inverse;
  Check(kernels::rope::Rotate(arguments, Stream()), "a rotation");
}

void SiluProduct(const at::Tensor& gate_up, const at::Tensor& out) {
  Check(kernels::swiglu::Forward(
            {TypeOf(gate_up), out.size(0), out.size(1), Data(gate_up), gate_up.stride(0), Data(out), out.stride(0)},
            Stream()),
        "silu");
}

void SiluProductBackward(const at::Tensor& gate_up, const at::Tensor& out_gradient,
                         const at::Tensor& gate_up_gradient) {
  Check(kernels::swiglu::Backward(
            {TypeOf(gate_up), out_gradient.size(0), out_gradient.size(1), Data(gate_up), gate_up.stride(0),
             Data(out_gradient), out_gradient.stride(0), Data(gate_up_gradient), gate_up_gradient.stride(0)},
            Stream()),
        "the gradient of silu");
}

void CrossEntropy(const at::Tensor& logits, const at::Tensor& targets, bool wants_gradient,
                  const at::Tensor& loss_sum) {
  const at::Tensor loss = at::empty({logits.size(0)}, logits.options().dtype(at::kDouble));
  Check(kernels::cross_entropy::Loss({TypeOf(logits), logits.size(0), logits.size(1), Data(logits), logits.stride(0),
                                      targets.data_ptr<int64_t>(), loss.data_ptr<double>(), wants_gradient},
                                     Stream()),
        "the loss");
  at::Tensor(loss_sum).add_(loss.sum());
}

void AddScaled(const at::Tensor& x, double scale, const at::Tensor& sum) {
  TORCH_CHECK(x.dim() == 2 && x.sizes() == sum.sizes(), "adding ", x.sizes(), " to ", sum.sizes());
  Check(kernels::tensor_sums::AddScaled({TypeOf(x), x.size(0), x.size(1), Data(x), x.stride(0), x.stride(1),
                                         Floats(sum), sum.stride(0), sum.stride(1), static_cast<float>(scale)},
                                        Stream()),
        "adding to a gradient");
}

void AddColumnSums(const at::Tensor& x, const at::Tensor& sum, const at::Tensor& scratch) {
  const at::Tensor work = scratch.defined() ? scratch : at::empty({kParts, x.size(1)}, x.options().dtype(at::kFloat));
  Check(kernels::tensor_sums::ColumnSums(
            {TypeOf(x), x.size(0), x.size(1), Data(x), x.stride(0), work.size(0), Floats(work), Floats(sum)}, Stream()),
        "sums of columns");
}

void AddRows(const at::Tensor& ids, const at::Tensor& x, const at::Tensor& table) {
  const auto [sorted, order] = ids.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  Check(kernels::embedding_gradient::Add(
            {TypeOf(x), x.size(0), x.size(1), sorted.data_ptr<int64_t>(), order.data_ptr<int64_t>(), Data(x),
             x.stride(0), Floats(table), table.stride(0)},
            Stream()),
        "the gradient of the embedding");
}

double SumOfSquares(const std::vector<at::Tensor>& tensors) {
  std::vector<kernels::tensor_sums::Span> spans;
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.is_contiguous(), "squares of a tensor with gaps");
    spans.push_back({Floats(tensor), tensor.numel()});
  }
  if (spans.empty()) return 0;
  const at::Tensor list = Upload(spans);
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kDouble);
  const at::Tensor work = at::empty({kernels::tensor_sums::kNormParts}, options), result = at::empty({1}, options);
  Check(kernels::tensor_sums::SquaredNorm(static_cast<const kernels::tensor_sums::Span*>(list.data_ptr()),
                                          static_cast<int64_t>(spans.size()), work.data_ptr<double>(),
                                          result.data_ptr<double>(), Stream()),
        "the norm of the gradients");
  return result.item<double>();
}

void ApplyDropout(const DropoutMask& mask, const at::Tensor& x, const at::Tensor& out) {
  kernels::dropout::Arguments arguments;
  arguments.type = TypeOf(x);
  arguments.rows = x.size(0);
  arguments.columns = x.size(1);
  arguments.seed = mask.seed;
  arguments.step = mask.step;
  arguments.first_sequence = mask.first_sequence;
  arguments.layer = mask.layer;
  arguments.module = mask.module;
  arguments.tokens = mask.tokens;
  arguments.first_token = mask.first_token;
  arguments.first_row = mask.first_row;
  arguments.threshold = static_cast<uint32_t>(mask.rate * 4294967296.0);
  arguments.scale = static_cast<float>(1.0 / (1.0 - mask.rate));
  arguments.x = Data(x);
  arguments.x_stride = x.stride(0);
  arguments.out = Data(out);
  arguments.out_stride = out.stride(0);
  Check(kernels::dropout::Apply(arguments, Stream()), "dropout");
}

void DrawNormal(uint64_t key, double deviation, const at::Tensor& out) {
  TORCH_CHECK(out.is_contiguous(), "drawing into a tensor with gaps");
  Check(kernels::normal::Draw({TypeOf(out), key, 0, out.numel(), deviation, Data(out)}, Stream()), "drawing weights");
}

void DequantizeNf4(const at::Tensor& codes, const at::Tensor& scale_codes, const at::Tensor& scale_maxima, float mean,
                   const at::Tensor& out) {
  TORCH_CHECK(out.is_contiguous(), "dequantizing into a tensor with gaps");
  Check(kernels::nf4::Dequantize({TypeOf(out), codes.data_ptr<uint8_t>(), scale_codes.data_ptr<uint8_t>(),
                                  Floats(scale_maxima), mean, 0, out.numel(), Data(out)},
                                 Stream()),
        "dequantizing");
}

void ProjectRows(const at::Tensor& x, const at::Tensor& factor, const at::Tensor& out, const at::Tensor& sums) {
  TORCH_CHECK(TypeOf(x) == ElementType::kBfloat16 && TypeOf(factor) == ElementType::kBfloat16 && x.stride(1) == 1 &&
                  out.stride(1) == 1 && sums.is_contiguous(),
              "LoRA's kernels want rows of bf16");
  lora::ProjectArguments arguments{x.size(0), x.size(1), factor.size(1)};
  arguments.x = Data(x);
  arguments.x_stride = x.stride(0);
  arguments.factor = Data(factor);
  arguments.factor_rank_stride = factor.stride(1);
  arguments.factor_feature_stride = factor.stride(0);
  arguments.out = Data(out);
  arguments.out_stride = out.stride(0);
  arguments.parts = sums.size(0);
  arguments.sums = Floats(sums);
  Check(lora::Project(arguments, Stream()), "a product with a factor of LoRA");
}

void OuterSums(const at::Tensor& left, const at::Tensor& right, const at::Tensor& sums) {
  TORCH_CHECK(TypeOf(left) == ElementType::kBfloat16 && TypeOf(right) == ElementType::kBfloat16 &&
                  left.stride(1) == 1 && right.stride(1) == 1 && sums.is_contiguous(),
              "LoRA's kernels want rows of bf16");
  Check(lora::Outer({right.size(0), left.size(1), right.size(1), Data(left), left.stride(0), Data(right),
                     right.stride(0), sums.size(0), Floats(sums)},
                    Stream()),
        "a gradient of LoRA");
}

void AddOuterSums(const at::Tensor& sums, int64_t first_rank, double scale, const at::Tensor& gradient) {
  TORCH_CHECK(gradient.size(1) == sums.size(2), "sums of ", sums.sizes(), " for a gradient of ", gradient.sizes());
  Check(lora::AddOuter({sums.size(1), sums.size(2), sums.size(0), Floats(sums), first_rank, gradient.size(0),
                        static_cast<float>(scale), Floats(gradient), gradient.stride(0), gradient.stride(1)},
                       Stream()),
        "adding to a gradient of LoRA");
}

void QuantizeFp8Rows(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales) {
  Check(kernels::fp8_rows::Quantize({TypeOf(x), x.size(0), x.size(1), Data(x), x.stride(0),
                                     static_cast<uint8_t*>(codes.data_ptr()), codes.stride(0), Floats(scales)},
                                    Stream()),
        "quantizing rows");
}

void StepAdamw(const std::vector<AdamwTensor>& tensors, const AdamwStep& step) {
  if (tensors.empty()) return;
  std::vector<kernels::adamw::Tensor> list;
  int64_t elements = 0;
  for (const AdamwTensor& tensor : tensors) {
    const bool rounds = !tensor.value.is_same(tensor.master);
    list.push_back({tensor.master.numel(), Floats(tensor.master), Floats(tensor.gradient), Floats(tensor.first_moment),
                    Floats(tensor.second_moment), rounds ? Data(tensor.value) : nullptr});
    elements = std::max(elements, tensor.master.numel());
  }
  const at::Tensor uploaded = Upload(list);
  kernels::adamw::Update update;
  update.value_type = TypeOf(tensors.front().value);
  update.rate = step.rate;
  update.beta1 = step.beta1;
  update.beta2 = step.beta2;
  update.epsilon = step.epsilon;
  update.decay = step.decay;
  update.step = step.step;
  Check(kernels::adamw::Step(update, static_cast<const kernels::adamw::Tensor*>(uploaded.data_ptr()),
                             static_cast<int64_t>(list.size()), elements, Stream()),
        "AdamW");
}

}  // namespace longspan::trainer::gpu
